//! Who may ask, and what browsers are told to do with the answers.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;
use std::sync::Arc;

use super::error::ApiError;

/// Sent with every answer. Scripts and styles of the page stand in it; nothing is loaded from elsewhere, and no other
/// site may frame, embed or read what is here.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    // The same address may serve other images tomorrow.
    (header::CACHE_CONTROL, "no-store"),
];

/// The names by which the server may be asked; empty: by any.
#[derive(Clone, Debug)]
pub struct Names(Arc<[String]>);

impl Names {
    /// For a server at `ip` that was asked to listen at `host`. On loopback only its own names are answered: a page
    /// of another site whose name was made to point here (DNS rebinding) still says the other name.
    pub fn of(ip: IpAddr, host: &str) -> Self {
        if !ip.to_canonical().is_loopback() {
            return Names(Arc::new([]));
        }
        let own = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let names = ["localhost", "127.0.0.1", "[::1]", &own, host];
        Names(names.iter().map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Why a request with these headers is not answered, if it is not.
    fn refuse(&self, method: &Method, headers: &HeaderMap) -> Option<ApiError> {
        let forbid = |text: String| Some(ApiError::new(StatusCode::FORBIDDEN, text));
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        if !self.0.is_empty() && !self.0.contains(&without_port(host)) {
            return forbid(format!("this server is not called {host:?}; ask for localhost"));
        }
        // A form or script of another site: it could not read the answer, but make work.
        let origin = text(header::ORIGIN);
        if method == Method::POST
            && origin.is_some_and(|origin| origin.split_once("://").is_none_or(|(_, site)| site != host))
        {
            return forbid("other sites may not ask".into());
        }
        None
    }
}

/// `localhost:8000` as `localhost`, `[::1]:8000` as `[::1]`, in lower case. The port may be another one: a tunnel's.
fn without_port(host: &str) -> String {
    let end = match host.rfind(']') {
        Some(bracket) => bracket + 1,
        None => host.find(':').unwrap_or(host.len()),
    };
    host[..end].trim_end_matches('.').to_ascii_lowercase()
}

/// Refuses what must be refused and adds [`HEADERS`] to every answer.
pub async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let mut response = match names.refuse(request.method(), request.headers()) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(names: &Names, method: Method, host: &str, origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        names.refuse(&method, &headers).is_none()
    }

    #[test]
    fn on_loopback_only_its_own_names_are_answered() {
        let names = Names::of("127.0.0.1".parse().unwrap(), "127.0.0.1");
        for host in ["localhost", "LocalHost:8000", "127.0.0.1:9", "[::1]:8000", "[::1]", "localhost."] {
            assert!(answered(&names, Method::GET, host, None), "{host}");
        }
        let strange = [
            "",
            "evil.example",
            "evil.example:8000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "[::2]:1",
            "]",
        ];
        for host in strange {
            assert!(!answered(&names, Method::GET, host, None), "{host}");
        }
        assert!(names.refuse(&Method::GET, &HeaderMap::new()).is_some());
        let everywhere = Names::of("0.0.0.0".parse().unwrap(), "0.0.0.0");
        assert!(answered(&everywhere, Method::GET, "gpu-box:8000", None));
    }

    #[test]
    fn other_sites_cannot_post() {
        let names = Names::of("::1".parse().unwrap(), "localhost");
        let post = |origin| answered(&names, Method::POST, "localhost:8000", origin);
        assert!(post(None) && post(Some("http://localhost:8000")));
        for origin in
            ["http://evil.example", "null", "http://localhost:9000", "http://localhost:8000.evil.example"]
        {
            assert!(!post(Some(origin)), "{origin}");
        }
        assert!(answered(&names, Method::GET, "localhost:8000", Some("http://evil.example")));
    }
}
