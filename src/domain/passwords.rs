//! Passwords in texts of others: the words of a server or of a library, which are shown to people as they are but for these.

/// What stands in a password's place.
const MASK: &str = "***";

/// A text without the passwords of the URLs in it, and of what PostgreSQL takes as `password=…`.
#[must_use]
pub fn masked(text: &str) -> String {
    masked_settings(&masked_urls(text))
}

/// `scheme://user:password@host` without its password.
fn masked_urls(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        // To the end of the word: a slash may be a part of a password that somebody forgot to encode.
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`'))
            .unwrap_or(after.len());
        let (word, left) = after.split_at(end);
        // The next URL of a list.
        let next = word
            .find("://")
            .and_then(|next| word[..next].rfind([',', ';']));
        let (word, left) = next.map_or((word, left), |next| after.split_at(next));
        match word.rsplit_once('@') {
            Some((account, host)) => match account.split_once(':') {
                Some((user, _)) => out.push_str(&format!("{user}:{MASK}@{host}")),
                None => out.push_str(word),
            },
            None => out.push_str(word),
        }
        rest = left;
    }
    out.push_str(rest);
    out
}

/// `password=…`, in whatever case, without what follows.
fn masked_settings(text: &str) -> String {
    const NAME: &str = "password=";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // As long as the text itself, so that places are the same in both.
    while let Some(at) = rest.to_ascii_lowercase().find(NAME) {
        let (before, after) = rest.split_at(at + NAME.len());
        out.push_str(before);
        out.push_str(MASK);
        let end = match after.chars().next() {
            Some(quote @ ('\'' | '"')) => after[1..].find(quote).map_or(after.len(), |end| end + 2),
            _ => after
                .find(|c: char| c.is_whitespace() || matches!(c, '&' | ';' | ',' | '"' | '\''))
                .unwrap_or(after.len()),
        };
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_as_it_is_but_for_passwords() {
        for (text, shown) in [
            (
                "PostgreSQL at db:5432/ordersdb refused: No space left on device",
                "PostgreSQL at db:5432/ordersdb refused: No space left on device",
            ),
            (
                "http://vendor:9/a@b and (postgres://u:pw@db/x) cannot be reached",
                "http://vendor:***@b and (postgres://u:***@db/x) cannot be reached",
            ),
            (
                "amqp://u:p@a:5672/%2f,amqp://u:q@b/%2f",
                "amqp://u:***@a:5672/%2f,amqp://u:***@b/%2f",
            ),
            ("http://key@host:80/ is away", "http://key@host:80/ is away"),
            (
                "host=db Password='a b' user=u password=x&y",
                "host=db Password=*** user=u password=***&y",
            ),
            ("://", "://"),
        ] {
            assert_eq!(masked(text), shown);
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_password_it_is_not_shown(
            before in "[ -~é]{0,12}",
            // A list of URLs is separated by commas, so that no password in one has any.
            password in "SECRET[!#-&(-+.-:=?-_a-~é]{0,8}",
            after in "[ -~é]{0,12}",
        ) {
            for text in [
                format!("{before} postgres://u:{password}@db:1/x {after}"),
                format!("{before} password={} {after}", password.replace(['&', ';', ','], "")),
                format!("{before} http://h/,amqp://u:{password}@db:1/x {after}"),
            ] {
                let shown = masked(&text);
                proptest::prop_assert!(!shown.contains("SECRET"), "{} of {}", shown, text);
            }
        }
    }
}
