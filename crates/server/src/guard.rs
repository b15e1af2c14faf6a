//! Who may ask: keys, the names under which a local server answers, and web pages of other origins.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::ApiError;

/// The keys that open the server, as hashes of equal length.
pub struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub fn new(keys: &[String]) -> Keys {
        Keys(keys.iter().map(|key| Sha256::digest(key.as_bytes()).into()).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes as long for any wrong key, however much of it is right.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.is_empty() {
            return Ok(());
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        let Some(given) = given else {
            return Err(refused("this server needs a key: send it as \"Authorization: Bearer KEY\""));
        };
        let given: [u8; 32] = Sha256::digest(given).into();
        let found = self.0.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&given));
        if bool::from(found) { Ok(()) } else { Err(refused("the key is not known here")) }
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
}

fn refused(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
        .with_header("www-authenticate", "Bearer")
}

/// Which web pages may use the server through a browser: its own, and those of the origins allowed.
pub struct Origins {
    allowed: Vec<String>,
    /// The names beside localhost under which the server answers, `None` for all: a page may not give itself out for the
    /// server's own by having its name point here.
    names: Option<Vec<String>>,
}

impl Origins {
    pub fn new(allowed: Vec<String>, names: Option<Vec<String>>) -> Origins {
        Origins { allowed, names }
    }

    fn answers_to(&self, host: &str) -> bool {
        let Some(names) = &self.names else { return true };
        let name = name_of(host);
        // Old clients name no host; browsers always do.
        name.is_empty() || is_local(name) || names.iter().any(|known| known.eq_ignore_ascii_case(name))
    }

    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        // What is no text, or said twice, is nobody's name.
        let is_plain = headers.get_all(header::HOST).iter().count() < 2;
        let host = headers.get(header::HOST).map_or(Some(""), |host| host.to_str().ok().filter(|_| is_plain));
        let host = host.unwrap_or("?");
        if !self.answers_to(host) {
            let message = "without a key this server answers only to localhost, to addresses and to names that \
                           --allow-host gives it";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
        let own = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
        if own == Some(host) || self.allows(origin) {
            return Ok(());
        }
        let message = "pages of this origin may not use the server; --cors ORIGIN allows it";
        Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message))
    }

    /// Whether this origin was allowed by name.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        self.allowed.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
    }
}

/// The host without its port.
fn name_of(host: &str) -> &str {
    let name = match host.strip_prefix('[') {
        // Behind the bracket comes nothing but a port.
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || port.starts_with(':') => name,
            _ => return host,
        },
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// A name or address that can only be this machine's, or no name at all.
fn is_local(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(header::HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), value.parse().expect("a header"))).collect()
    }

    #[test]
    fn keys_open_and_others_do_not() {
        let keys = Keys::new(&["first".into(), "second".into()]);
        let check = |value: &str| keys.check(&headers(&[(header::AUTHORIZATION, value)])).is_ok();
        assert!(check("Bearer first") && check("bearer second"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer firs", "Bearer firstt", "Basic first", "first"] {
            assert!(!check(wrong), "{wrong:?}");
        }
        assert!(keys.check(&HeaderMap::new()).is_err());
        assert!(Keys::new(&[]).check(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn pages_of_others_stay_out() {
        let origins = Origins::new(vec!["https://mine.example".into()], Some(vec!["Box.example".into()]));
        let check = |host: &str, origin: Option<&str>| {
            let mut fields = vec![(header::HOST, host)];
            fields.extend(origin.map(|origin| (header::ORIGIN, origin)));
            origins.check(&headers(&fields)).is_ok()
        };
        assert!(check("localhost:8080", None) && check("127.0.0.1:1", Some("http://127.0.0.1:1")));
        assert!(check("[::1]:8080", None) && check("x.localhost", None) && check("LOCALHOST", None));
        assert!(check("localhost:8080", Some("https://mine.example")));
        assert!(!check("localhost:8080", Some("https://evil.example")));
        assert!(
            check("box.EXAMPLE:8080", None) && check("box.example.", None) && !check("x.box.example", None)
        );
        assert!(!check("localhost:8080", Some("null")));
        assert!(!check("evil.example:8080", Some("http://evil.example:8080")));
        let open = Origins::new(vec!["*".into()], None);
        let fields = [(header::HOST, "model.example"), (header::ORIGIN, "https://any.example")];
        assert!(open.check(&headers(&fields)).is_ok());
    }
}
