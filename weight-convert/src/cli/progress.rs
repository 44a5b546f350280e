//! [`ConversionBar`]: the bar of a conversion.

use command_line::{Bars, bars};

/// Shows the bytes that were read, and the current parameter.
pub struct ConversionBar<'a>(pub &'a mut Bars);

impl weight_convert::Progress for ConversionBar<'_> {
    fn start(&mut self, total: u64) {
        self.0.begin(bars::BYTES, "", Some(total));
    }

    fn advance(&mut self, bytes: u64, param: &str) {
        self.0.set_message(param);
        self.0.advance(bytes);
    }

    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}
