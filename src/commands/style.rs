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

/// Whether colours can be seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ink {
    /// They can.
    Coloured,
    /// They cannot, or are not wanted.
    Plain,
}

impl Ink {
    /// That of standard output.
    pub(super) fn of_stdout() -> Self {
        if std::io::stdout().is_terminal() && colour_is_wanted() {
            Self::Coloured
        } else {
            Self::Plain
        }
    }

    /// A text in a colour where that can be seen.
    pub(super) fn painted(self, colour: Colour, text: &str) -> String {
        let code = match (self, colour) {
            (Self::Plain, _) => return text.to_owned(),
            (Self::Coloured, Colour::Green) => "32",
            (Self::Coloured, Colour::Red) => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A text for standard output, in a colour where that can be seen.
pub(super) fn painted(colour: Colour, text: &str) -> String {
    Ink::of_stdout().painted(colour, text)
}
