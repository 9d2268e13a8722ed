//! Who calls, and whether they may. Where keys are required, each request but a few has one (RFC 6750); each route says
//! what it needs.

use std::num::NonZeroU32;
use std::sync::Arc;

use actix_web::http::header::{AUTHORIZATION, COOKIE as COOKIE_HEADER, ORIGIN, SET_COOKIE};
use actix_web::web::{Data, Payload};
use actix_web::{HttpMessage, HttpRequest, HttpResponse};
use chrono::Utc;
use serde::Deserialize;
use utoipa::ToSchema;

use super::body::read_json;
use super::cors::is_from_here;
use super::host::Hosts;
use super::problem::{INSUFFICIENT_SCOPE, INVALID_KEY, Problem, UNAUTHENTICATED, UNAVAILABLE};
use super::rate::Counters;
use crate::app::keys::{KeyRing, NotAdmitted};
use crate::domain::keys::{Caller, Scope};
use crate::limit::RateLimits;

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing: it tells nobody anything.
    Nothing,
    /// A key, whatever it allows.
    AnyKey,
    /// A key that allows this.
    Scope(Scope),
}

/// Who is let in, and how often.
#[derive(Clone)]
pub struct Door {
    lock: Lock,
    counters: Counters,
    /// Whether what a browser keeps is sent over TLS alone.
    is_secure: bool,
}

#[derive(Clone)]
enum Lock {
    /// Whoever reaches it: it can be reached from this machine only.
    None(Arc<Caller>),
    /// Who has a key.
    Keys(KeyRing),
}

impl Door {
    /// One that asks for no keys.
    #[must_use]
    pub fn open(rates: RateLimits) -> Self {
        Self {
            lock: Lock::None(Arc::new(Caller::local())),
            counters: Counters::new(rates),
            is_secure: false,
        }
    }

    /// One that asks for keys.
    #[must_use]
    pub fn with_keys(keys: KeyRing, rates: RateLimits) -> Self {
        Self {
            lock: Lock::Keys(keys),
            counters: Counters::new(rates),
            is_secure: false,
        }
    }

    /// The same, where TLS is spoken or not.
    #[must_use]
    pub fn secured(mut self, is_secure: bool) -> Self {
        self.is_secure = is_secure;
        self
    }

    /// Behind a proxy that speaks TLS, what the browser says of its page tells.
    fn cookie(&self, request: &HttpRequest, value: &str, seconds: u32) -> String {
        let origin = request.headers().get(ORIGIN);
        let is_secure =
            self.is_secure || origin.is_some_and(|of| of.as_bytes().starts_with(b"https://"));
        let secure = if is_secure { "; Secure" } else { "" };
        format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
    }

    /// The names by which it may be asked for, where these are configured.
    pub(super) fn hosts(&self, configured: Vec<String>) -> Hosts {
        match &self.lock {
            Lock::None(_) => Hosts::OwnAnd(configured.into()),
            Lock::Keys(_) => Hosts::Any,
        }
    }

    /// Whether anybody can be let in: where keys are required, whether they are known.
    pub(super) fn can_open(&self) -> bool {
        match &self.lock {
            Lock::None(_) => true,
            Lock::Keys(keys) => keys.is_known(),
        }
    }

    /// What counts the callers.
    pub(super) fn counters(&self) -> Counters {
        self.counters.clone()
    }

    fn caller(&self, request: &HttpRequest) -> Result<Arc<Caller>, Problem> {
        let keys = match &self.lock {
            Lock::None(local) => return Ok(Arc::clone(local)),
            Lock::Keys(keys) => keys,
        };
        // The page's own requests have the key that somebody has logged in with.
        let token = match logged_in_with(request) {
            Some(token) if !request.headers().contains_key(AUTHORIZATION) => token,
            _ => bearer(request)?,
        };
        Self::unlock(keys, token)
    }

    fn unlock(keys: &KeyRing, token: &str) -> Result<Arc<Caller>, Problem> {
        keys.caller(token, Utc::now()).map_err(|why| match why {
            NotAdmitted::Refused(refusal) => Problem::new(INVALID_KEY, refusal.to_string())
                .challenging("Bearer realm=\"stockctl\", error=\"invalid_token\"".to_owned()),
            NotAdmitted::KeysUnknown => Problem::new(
                UNAVAILABLE,
                "the database that has the API keys cannot be reached; try again later",
            ),
        })
    }

    /// Counts what a caller asks for, and lets the answer say how it stands.
    fn count(
        &self,
        request: &HttpRequest,
        caller: &Caller,
        amount: NonZeroU32,
        in_all: NonZeroU32,
    ) -> Result<(), Problem> {
        if self.counters.is_off() {
            return Ok(());
        }
        let counted = self.counters.count(&caller.name, amount, in_all);
        let standing = match counted {
            Ok(standing) => standing,
            Err(over) => over.standing(),
        };
        if let Some(standing) = standing {
            request.extensions_mut().insert(standing);
        }
        match counted {
            Ok(_) => Ok(()),
            Err(over) => Err(over.problem(in_all)),
        }
    }
}

/// Whether a caller may do what needs this.
fn check_scope(caller: &Caller, needs: Needs) -> Result<(), Problem> {
    match needs {
        Needs::Scope(scope) if !caller.may(scope) => Err(lacks(scope)),
        _ => Ok(()),
    }
}

/// What a caller is told whose key does not allow that.
pub(super) fn lacks(scope: Scope) -> Problem {
    Problem::new(
        INSUFFICIENT_SCOPE,
        format!("this needs an API key with the scope {scope}"),
    )
    .challenging(format!(
        "Bearer realm=\"stockctl\", error=\"insufficient_scope\", scope=\"{scope}\""
    ))
}

/// Lets a request in, or says why not. What comes after knows its caller by [`caller`].
pub(super) fn admit(request: &HttpRequest, needs: Needs) -> Result<(), Problem> {
    if needs == Needs::Nothing {
        return Ok(());
    }
    let door = request.app_data::<Data<Door>>().ok_or_else(no_door)?;
    let caller = door.caller(request)?;
    // In every line of the log from here on.
    tracing::Span::current().record("caller", caller.name.as_str());
    // Before the scope: who asks for what it may not counts as well.
    door.count(request, &caller, NonZeroU32::MIN, NonZeroU32::MIN)?;
    check_scope(&caller, needs)?;
    request.extensions_mut().insert(caller);
    Ok(())
}

/// Who calls, at a route that needs a key.
pub(super) fn caller(request: &HttpRequest) -> Result<Arc<Caller>, Problem> {
    request
        .extensions()
        .get::<Arc<Caller>>()
        .cloned()
        .ok_or_else(no_door)
}

/// Whether the key that a request was let in with opens nothing any more. To look is not to ask, so it is not counted. While
/// the keys are not known, since PostgreSQL is away, none is known to have ended either.
pub(super) fn has_ended(request: &HttpRequest) -> bool {
    let Some(door) = request.app_data::<Data<Door>>() else {
        return false;
    };
    door.caller(request)
        .is_err_and(|problem| problem.code() == INVALID_KEY)
}

/// Counts a request as so many; as one it is counted already.
pub(super) fn count_as(request: &HttpRequest, in_all: usize) -> Result<(), Problem> {
    let in_all = u32::try_from(in_all).unwrap_or(u32::MAX);
    let more = NonZeroU32::new(in_all.saturating_sub(1));
    let (Some(more), Some(in_all)) = (more, NonZeroU32::new(in_all)) else {
        return Ok(());
    };
    let door = request.app_data::<Data<Door>>().ok_or_else(no_door)?;
    door.count(request, &*caller(request)?, more, in_all)
}

fn no_door() -> Problem {
    tracing::error!("a route does not know its caller");
    Problem::internal()
}

/// The cookie of the operator's page.
pub(super) const COOKIE: &str = "stockctl_key";
/// Somebody who left it open logs in again the next day.
const LOGGED_IN_FOR_S: u32 = 12 * 60 * 60;
/// A body with a key is shorter.
const LOGIN_BYTES_MAX: usize = 1024;

/// The key that a browser has kept, where a page of this server asks: a page from elsewhere has none by it, whatever else
/// it may do.
fn logged_in_with(request: &HttpRequest) -> Option<&str> {
    if !is_from_here(request.headers()) {
        return None;
    }
    request
        .headers()
        .get_all(COOKIE_HEADER)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split(';'))
        .find_map(|pair| pair.trim().strip_prefix(COOKIE)?.strip_prefix('='))
}

/// A key to log in with.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Login {
    /// It needs the scope `admin`.
    key: String,
}

/// Log in
///
/// For the operator's page: the browser keeps the key for 12 hours, in a cookie that no script can read and no page of
/// another site causes to be sent. Programs send `Authorization` instead.
#[utoipa::path(post, path = "/login", tag = "operations",
    request_body(content = Login, example = json!({"key": "stockctl_ef0a46cc1d88_f60d…"})),
    responses((status = 204, description = "Logged in", headers(("Set-Cookie" = Option<String>, description = "The key; none where no keys are required")))))]
pub(super) async fn log_in(
    request: HttpRequest,
    payload: Payload,
    door: Data<Door>,
) -> Result<HttpResponse, Problem> {
    let login: Login = read_json(&request, payload, LOGIN_BYTES_MAX).await?;
    let mut answer = HttpResponse::NoContent();
    if let Lock::Keys(keys) = &door.lock {
        let token = login.key.trim();
        check_scope(&*Door::unlock(keys, token)?, Needs::Scope(Scope::Admin))?;
        answer.insert_header((SET_COOKIE, door.cookie(&request, token, LOGGED_IN_FOR_S)));
    }
    Ok(answer.finish())
}

/// Log out
///
/// The browser forgets the key.
#[utoipa::path(post, path = "/logout", tag = "operations",
    responses((status = 204, description = "Logged out", headers(("Set-Cookie" = String, description = "Nothing")))))]
pub(super) async fn log_out(request: HttpRequest, door: Data<Door>) -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((SET_COOKIE, door.cookie(&request, "", 0)))
        .finish()
}

/// The token of `Authorization: Bearer`.
fn bearer(request: &HttpRequest) -> Result<&str, Problem> {
    let missing = |detail: &str| {
        Problem::new(UNAUTHENTICATED, detail).challenging("Bearer realm=\"stockctl\"".to_owned())
    };
    let mut values = request.headers().get_all(AUTHORIZATION);
    let Some(value) = values.next() else {
        return Err(missing("send Authorization: Bearer and an API key"));
    };
    let token = value
        .to_str()
        .ok()
        .filter(|_| values.next().is_none())
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    match token {
        Some((_, token)) => Ok(token.trim()),
        None => Err(missing(
            "the header Authorization must be given once, as Bearer and an API key",
        )),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use actix_web::test::TestRequest;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_the_header_what_is_taken_for_a_token_is_of_it(
            value in prop_oneof![proptest::collection::vec(any::<u8>(), 0..60), "(?i:bearer) {0,2}[ -~]{0,40}".prop_map(String::into_bytes)],
        ) {
            let Ok(value) = HeaderValue::from_bytes(&value) else {
                return Ok(());
            };
            let request = TestRequest::default().insert_header((AUTHORIZATION, value.clone())).to_http_request();
            if let Ok(token) = bearer(&request) {
                let text = value.to_str().expect("it is text");
                prop_assert!(text[..7].eq_ignore_ascii_case("bearer "));
                prop_assert_eq!(text[7..].trim(), token);
            }
        }
    }
}
