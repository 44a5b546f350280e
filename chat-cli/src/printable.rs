//! [`Printable`]: removes control sequences from a model's text.

/// Removes control characters and escape sequences from text that arrives in pieces. Keeps line breaks and tabs.
///
/// A prompt can make a model write anything. An escape sequence could rename the window, hide text, or answer for the user.
#[derive(Debug, Default)]
pub struct Printable {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence, ESC [ ..., which ends at a letter.
    Control,
    /// In a control string, ESC ] ... and similar, which ends at BEL or ESC \.
    ControlString,
    /// In a control string, after ESC.
    ControlStringEscape,
}

impl Printable {
    /// The printable part of `text`.
    pub fn clean(&mut self, text: &str) -> String {
        text.chars().filter(|c| self.passes(*c)).collect()
    }

    fn passes(&mut self, c: char) -> bool {
        #[allow(clippy::match_same_arms, reason = "a table of transitions, read from the top")]
        let (state, passes) = match (self.state, c) {
            (State::ControlString, '\u{7}' | '\u{9C}') => (State::Text, false),
            (State::ControlString | State::ControlStringEscape, '\u{1B}') => (State::ControlStringEscape, false),
            (State::ControlStringEscape, '\\') => (State::Text, false),
            // A control string ends at a line break, so an unfinished one cannot hide the rest of the text.
            (_, '\n') => (State::Text, true),
            (State::ControlString | State::ControlStringEscape, _) => (State::ControlString, false),
            (_, '\u{1B}') => (State::Escape, false),
            (State::Escape, '[') | (_, '\u{9B}') => (State::Control, false),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => (State::ControlString, false),
            (_, '\u{90}' | '\u{98}' | '\u{9D}'..='\u{9F}') => (State::ControlString, false),
            (State::Escape, ' '..='/') => (State::Escape, false),
            (State::Escape, '0'..='~') => (State::Text, false),
            (State::Control, ' '..='?') => (State::Control, false),
            (State::Control, '@'..='~') => (State::Text, false),
            (_, '\t') => (State::Text, true),
            (_, c) => (State::Text, !c.is_control()),
        };
        self.state = state;
        passes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(text: &str) -> String {
        let whole = Printable::default().clean(text);
        let mut printable = Printable::default();
        let pieces: String = text.chars().map(|c| printable.clean(c.encode_utf8(&mut [0; 4]))).collect();
        assert_eq!(pieces, whole, "{text:?}");
        whole
    }

    #[test]
    fn control_sequences_are_removed() {
        assert_eq!(clean("a\tb\nc é 日本 👩‍👩‍👧"), "a\tb\nc é 日本 👩‍👩‍👧");
        assert_eq!(clean("\u{1b}[31mred\u{1b}[0m"), "red");
        assert_eq!(clean("\u{1b}[?25l\u{1b}[2Jx"), "x");
        assert_eq!(clean("\u{1b}]0;title\u{7}x\u{1b}]52;c;AAAA\u{1b}\\y"), "xy");
        assert_eq!(clean("\u{1b}Pdcs\u{1b}\\x\u{1b}(Bz\u{1b}cq"), "xzq");
        assert_eq!(clean("\u{9b}31mred\u{9d}0;t\u{9c}x\u{85}y"), "redxy");
        assert_eq!(clean("back\u{8}\u{8}space\r\u{7f}\u{0}"), "backspace");
        assert_eq!(clean("\u{1b}]0;never ends\nshown"), "\nshown");
        assert_eq!(clean("\u{1b}"), "");
        assert!(
            (0..=0x9f)
                .filter_map(char::from_u32)
                .all(|c| !clean(&c.to_string()).contains(|c: char| c.is_control() && c != '\n' && c != '\t'))
        );
    }
}
