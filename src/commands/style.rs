//! Colours, on a terminal only, and not where `NO_COLOR` asks for none.

use std::io::IsTerminal;

use crate::telemetry::colour_is_wanted;

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    /// As it should be.
    Green,
    /// Not as it should be.
    Red,
}

/// A text for standard output, in a colour where that can be seen.
pub(super) fn painted(colour: Colour, text: &str) -> String {
    if !std::io::stdout().is_terminal() || !colour_is_wanted() {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => "32",
        Colour::Red => "1;31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}
