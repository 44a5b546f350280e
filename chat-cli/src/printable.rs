//! [`Printable`]: a model's text without what would steer the terminal.

/// Drops control characters and escape sequences from text that arrives in pieces. Line breaks and tabs stay.
///
/// A model can be made to write anything; an escape sequence could rename the window, hide text or answer for the user.
#[derive(Debug, Default)]
pub struct Printable {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
enum State {
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// In ESC [ ..., which ends at a letter.
    Control,
    /// In ESC ] ... and its like, which end at BEL or ESC \.
    Text7,
    /// In one of those, behind ESC.
    Text7Escape,
}

impl Printable {
    /// What of `text` may be printed.
    pub fn clean(&mut self, text: &str) -> String {
        text.chars().filter(|c| self.passes(*c)).collect()
    }

    fn passes(&mut self, c: char) -> bool {
        #[allow(clippy::match_same_arms, reason = "a table of transitions, read from the top")]
        let (state, passes) = match (self.state, c) {
            (State::Text7, '\u{7}' | '\u{9C}') => (State::Text, false),
            (State::Text7 | State::Text7Escape, '\u{1B}') => (State::Text7Escape, false),
            (State::Text7Escape, '\\') => (State::Text, false),
            // No sequence of text reaches over a line: what follows is shown, whatever was begun.
            (_, '\n') => (State::Text, true),
            (State::Text7 | State::Text7Escape, _) => (State::Text7, false),
            (_, '\u{1B}') => (State::Escape, false),
            (State::Escape, '[') | (_, '\u{9B}') => (State::Control, false),
            (State::Escape, ']' | 'P' | 'X' | '^' | '_') => (State::Text7, false),
            (_, '\u{90}' | '\u{98}' | '\u{9D}'..='\u{9F}') => (State::Text7, false),
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
    fn nothing_steers_the_terminal() {
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
