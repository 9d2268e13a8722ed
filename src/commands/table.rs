//! Text in columns, safe for a terminal.

use chrono::{DateTime, Utc};

/// What somebody else wrote must not steer the terminal of whoever reads it.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Columns as wide as their longest cell; a cell may be coloured.
pub(super) fn aligned<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| seen_width(&row[column]))
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let gap = width - seen_width(cell);
            format!("{cell}{}", " ".repeat(gap))
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        line.trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A moment, for people: to the millisecond, since much happens within a second.
pub(super) fn moment(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string()
}

/// Characters that take a place: a colour takes none.
fn seen_width(cell: &str) -> usize {
    let mut parts = cell.split('\x1b');
    let before = parts.next().unwrap_or_default().chars().count();
    let coloured = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    before + coloured.map(|text| text.chars().count()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_wrote_does_not_steer_the_terminal() {
        assert_eq!(
            printable("a\u{1b}[2Jb\tc\u{9b}"),
            "a\u{fffd}[2Jb\u{fffd}c\u{fffd}"
        );
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let rows = [["ID", "ERROR"], ["ééé", "-"], ["a", "x y"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "ID   ERROR\nééé  -\na    x y");
    }

    #[test]
    fn a_colour_takes_no_room() {
        let rows = [["\x1b[32mok\x1b[0m", "x"], ["fails", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), "\x1b[32mok\x1b[0m     x\nfails  y");
    }
}
