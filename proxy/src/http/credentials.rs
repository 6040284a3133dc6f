//! What a program says to the proxy that was started for it (RFC 7617, in `Proxy-Authorization`).

use std::{fmt, io, sync::Arc};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustix::rand::{GetRandomFlags, getrandom};

use super::base64;

/// A user and a password that nobody can guess. Cheap to clone; it is shown nowhere.
#[derive(Clone)]
pub struct Credentials(Arc<str>);

impl Credentials {
    /// How they are asked for.
    pub(crate) const CHALLENGE: &str = "Basic realm=\"towpath run\"";

    /// New ones.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn random() -> io::Result<Self> {
        let mut secret = [0; 16];
        getrandom(&mut secret, GetRandomFlags::empty())?;
        Ok(Self(format!("job:{:032x}", u128::from_ne_bytes(secret)).into()))
    }

    /// As they stand in a URI: `user:password`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a field says them. How long that takes says nothing of them.
    pub(crate) fn are(&self, field: &[u8]) -> bool {
        let expected = format!("Basic {}", base64::encode(self.0.as_bytes()));
        let Some((scheme, given)) = field.split_at_checked("Basic ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Basic ")
            && verify_slices_are_equal(given.trim_ascii(), &expected.as_bytes()["Basic ".len()..])
                .is_ok()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_ones_are_taken() {
        let credentials = Credentials(Arc::from("job:secret"));
        for (field, expected) in [
            ("Basic am9iOnNlY3JldA==", true),
            ("basic am9iOnNlY3JldA==", true),
            ("Basic  am9iOnNlY3JldA== ", true),
            ("Basic am9iOnNlY3JldB==", false),
            ("Basic am9i", false),
            ("Bearer am9iOnNlY3JldA==", false),
            ("Basic", false),
            ("", false),
        ] {
            assert_eq!(credentials.are(field.as_bytes()), expected, "{field}");
        }
        let [one, other] = [(); 2].map(|()| Credentials::random().unwrap());
        assert!(one.as_str() != other.as_str() && !format!("{one:?}").contains(one.as_str()));
    }
}
