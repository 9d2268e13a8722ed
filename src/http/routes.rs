//! What is served where. A route says its path, its methods and what it answers with once; the server, the header
//! `Allow`, and the check that the API's description leaves none out all read that.

use actix_web::dev::ServiceFactory;
use actix_web::guard::{self, GuardContext};
use actix_web::http::Method;
use actix_web::http::header::{ACCEPT, HeaderValue};
use actix_web::{FromRequest, Handler, HttpRequest, Resource, Responder, web};

use super::auth::{Needs, admit};
use super::problem::{NOT_ACCEPTABLE, Problem};
use super::query::refuse_query;

/// What most routes answer with.
const JSON: &str = "application/json";
/// What those answer with whose answer has no body: it is taken by whoever asks for anything.
pub(super) const NOTHING: &str = "";

/// What becomes of parameters in the query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Query {
    /// The handler's matter.
    Taken,
    /// There are none, and one that is there was meant for something.
    Refused,
}

/// A path, and what is done there.
pub(super) struct At {
    path: &'static str,
    methods: Vec<(Method, Needs)>,
    media_type: &'static str,
    resource: Resource,
}

impl At {
    /// A path at which nothing is done yet; it answers with JSON.
    pub(super) fn new(path: &'static str) -> Self {
        Self {
            path,
            methods: Vec::new(),
            media_type: JSON,
            resource: web::resource(path),
        }
    }

    /// It answers with something else than JSON. To be said before its methods.
    pub(super) fn of_type(mut self, media_type: &'static str) -> Self {
        self.media_type = media_type;
        self
    }

    /// Where, by which methods, and what each needs.
    pub(super) fn methods(&self) -> (&'static str, &[(Method, Needs)]) {
        (self.path, &self.methods)
    }

    /// A GET, and the HEAD that goes with it: the server leaves the body of its answer out.
    pub(super) fn get<F, Args>(self, needs: Needs, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.on(&[Method::GET, Method::HEAD], needs, Query::Refused, handler)
    }

    /// The same, which reads its query, or takes whatever stands there.
    pub(super) fn get_with_query<F, Args>(self, needs: Needs, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.on(&[Method::GET, Method::HEAD], needs, Query::Taken, handler)
    }

    /// A POST.
    pub(super) fn post<F, Args>(self, needs: Needs, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.on(&[Method::POST], needs, Query::Refused, handler)
    }

    /// A PUT.
    pub(super) fn put<F, Args>(self, needs: Needs, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.on(&[Method::PUT], needs, Query::Refused, handler)
    }

    /// A DELETE, whose answer has no body.
    pub(super) fn delete<F, Args>(self, needs: Needs, handler: F) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.on(&[Method::DELETE], needs, Query::Refused, handler)
    }

    fn on<F, Args>(
        mut self,
        methods: &'static [Method],
        needs: Needs,
        query: Query,
        handler: F,
    ) -> Self
    where
        F: Handler<Args>,
        Args: FromRequest + 'static,
        F::Output: Responder + 'static,
    {
        self.methods
            .extend(methods.iter().map(|method| (method.clone(), needs)));
        let media_type = match methods {
            [Method::DELETE] => NOTHING,
            _ => self.media_type,
        };
        let route = web::route()
            .guard(guard::fn_guard(move |context| {
                methods.contains(&context.head().method)
            }))
            .guard(guard::fn_guard(move |context| {
                is_accepted(context, media_type)
            }));
        self.resource = self
            .resource
            .route(route.to(move |request: HttpRequest, args: Args| {
                let handler = handler.clone();
                async move {
                    admit(&request, needs)?;
                    // What is for everybody, pages and probes, has a name of its own for caches and the like.
                    if query == Query::Refused && needs != Needs::Nothing {
                        refuse_query(&request)?;
                    }
                    Ok::<F::Output, Problem>(handler.call(args).await)
                }
            }));
        self
    }

    /// As the server takes it: every other request for this path is told what is wrong with it.
    pub(super) fn into_service(
        self,
    ) -> Resource<
        impl ServiceFactory<
            actix_web::dev::ServiceRequest,
            Config = (),
            Response = actix_web::dev::ServiceResponse,
            Error = actix_web::Error,
            InitError = (),
        >,
    > {
        let methods: Vec<Method> = self.methods.into_iter().map(|(method, _)| method).collect();
        let media_type = self.media_type;
        self.resource
            .default_service(web::route().to(move |request: HttpRequest| {
                std::future::ready(Err::<&str, _>(not_served(&request, &methods, media_type)))
            }))
    }
}

fn not_served(request: &HttpRequest, methods: &[Method], media_type: &str) -> Problem {
    let path = request.path();
    if methods.contains(request.method()) {
        return Problem::new(
            NOT_ACCEPTABLE,
            format!("{path} answers with {media_type}, which the header Accept leaves out"),
        );
    }
    let allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
    Problem::method_not_allowed(
        format!("{path} does not answer {}", request.method()),
        allowed.join(", "),
    )
}

/// Whether the caller takes such an answer; without a word about it, any.
fn is_accepted(context: &GuardContext<'_>, media_type: &str) -> bool {
    let asked: Result<Vec<&str>, _> = context
        .head()
        .headers
        .get_all(ACCEPT)
        .map(HeaderValue::to_str)
        .collect();
    // What is no text says nothing that could be kept to. Several lines are one list.
    media_type == NOTHING || asked.map_or(true, |asked| accepts(&asked.join(","), media_type))
}

/// Whether a header `Accept` takes a media type: the range that names it most exactly counts (RFC 9110, section 12.5.1).
/// There is one form to be had, so weights are not weighed against each other, and only 0 refuses.
fn accepts(header: &str, media_type: &str) -> bool {
    let kind = media_type.split('/').next().unwrap_or_default();
    let exactness = |essence: &str| match essence {
        "*/*" | "*" => Some(0),
        _ if essence.eq_ignore_ascii_case(media_type) => Some(2),
        _ => essence
            .strip_suffix("/*")
            .filter(|of| of.eq_ignore_ascii_case(kind))
            .map(|_| 1),
    };
    let is_refused = |parameter: &str| match parameter.split_once('=') {
        Some((name, weight)) => {
            name.eq_ignore_ascii_case("q") && weight.parse::<f32>().is_ok_and(|of| of <= 0.0)
        }
        None => false,
    };
    let meant = header.split(',').filter_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        let exactness = exactness(parts.next().unwrap_or_default())?;
        Some((exactness, !parts.any(is_refused)))
    });
    header.split([',', ' ', '\t']).all(str::is_empty)
        || meant.max().is_some_and(|(_, is_taken)| is_taken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_is_accepted_by_its_name_or_by_a_range() {
        for (header, expected) in [
            ("", true),
            ("*/*", true),
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/*;q=0.1", true),
            ("text/html, application/xml;q=0.9, */*;q=0.8", true),
            // As java.net.URLConnection asks.
            ("text/html, image/gif, *; q=.2, */*; q=.2", true),
            ("text/html", false),
            ("text/*, application/xml", false),
            ("application/json;q=0", false),
            ("application/json; Q=0, */*", false),
            ("*/*, application/*;q=0.000", false),
            ("application/json, */*;q=0", true),
            ("*/*;q=0", false),
            ("application/json;q=0.0, text/html", false),
            ("application/jsonp", false),
            ("application/problem+json", false),
            ("nonsense", false),
        ] {
            assert_eq!(accepts(header, JSON), expected, "{header:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_an_answer_that_is_accepted_was_named(
            header in "\\PC{0,40}|(([a-zA-Z*]{1,4}|application|text)(/([a-z*]{1,4}|json|\\*))?(;q=[01.]{1,4})?,? ?){0,3}",
        ) {
            let named = header.to_ascii_lowercase();
            if accepts(&header, JSON) {
                let is_named = ["*", "application/json"].iter().any(|name| named.contains(name));
                prop_assert!(is_named || header.trim().is_empty(), "{}", header);
            }
            // Beside whatever else, it is accepted where it is named, and refused where nothing else is.
            let beside = format!("{header}, {JSON}");
            prop_assert!(accepts(&beside, JSON));
            let refused = format!("{JSON};q=0");
            prop_assert!(!accepts(&refused, JSON));
        }
    }
}
