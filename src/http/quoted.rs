//! Lists in headers whose parts may stand in quotes.

/// Splits at what separates the parts, but not between quotes. A sign behind `escape` there is no end of a quote.
pub(super) fn split_outside_quotes(
    text: &str,
    separator: char,
    escape: Option<char>,
) -> impl Iterator<Item = &str> {
    let (mut is_within, mut is_escaped) = (false, false);
    text.split(move |c| {
        if is_escaped {
            is_escaped = false;
        } else if is_within && Some(c) == escape {
            is_escaped = true;
        } else {
            is_within ^= c == '"';
        }
        c == separator && !is_within
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str, escape: Option<char>) -> Vec<&str> {
        split_outside_quotes(text, ',', escape).collect()
    }

    #[test]
    fn between_quotes_nothing_is_split() {
        assert_eq!(split("a,b", None), ["a", "b"]);
        assert_eq!(split(r#""a,b",c"#, None), [r#""a,b""#, "c"]);
        assert_eq!(split(r#""a\",b"#, None), [r#""a\""#, "b"]);
        assert_eq!(split(r#""a\",b",c"#, Some('\\')), [r#""a\",b""#, "c"]);
        assert_eq!(split(r#"a\",b",c"#, Some('\\')), [r#"a\",b""#, "c"]);
        assert_eq!(
            split(r#""a,b"#, None),
            [r#""a,b"#],
            "one that is not closed"
        );
        assert_eq!(split("", None), [""]);
    }
}
