//! How Apple's map service is named on a command line.

use std::path::PathBuf;

use rustls::RootCertStore;

use super::apple::{AppleKey, AppleMaps, KeyError};
use crate::{
    fetch::{HttpError, system_roots},
    pace::Limits,
};

/// Under which `--help` has them.
pub const APPLE_HEADING: &str =
    "Apple Maps (without it, places are looked up in the built-in gazetteer alone)";

/// Options of those who ask Apple Maps: all three of the first, or none.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AppleArgs {
    /// Private key of a Maps identifier: AuthKey_….p8, as Apple gives it out
    #[arg(long, value_name = "FILE", env = "TOWPATH_APPLE_MAPS_KEY", help_heading = APPLE_HEADING)]
    pub apple_maps_key: Option<PathBuf>,

    /// Identifier of that key
    #[arg(long, value_name = "ID", env = "TOWPATH_APPLE_MAPS_KEY_ID", help_heading = APPLE_HEADING)]
    pub apple_maps_key_id: Option<String>,

    /// Identifier of the developer team
    #[arg(long, value_name = "ID", env = "TOWPATH_APPLE_MAPS_TEAM_ID", help_heading = APPLE_HEADING)]
    pub apple_maps_team_id: Option<String>,

    /// Where the service is, e.g. a stand-in for tests
    #[arg(long, value_name = "URL", hide = true, default_value = AppleMaps::URL)]
    pub apple_maps_url: String,
}

/// Which places a map service is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AskFor {
    /// Those that the built-in gazetteer does not know
    #[default]
    Unknown,
    /// All of them
    All,
}

/// Why Apple Maps cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum AppleError {
    /// Some options without the others.
    #[error(
        "{missing} {}: Apple Maps needs --apple-maps-key, --apple-maps-key-id and --apple-maps-team-id together, or none of them",
        if *several { "are missing" } else { "is missing" }
    )]
    Incomplete {
        /// Those that are not there.
        missing: String,
        /// More than one.
        several: bool,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The server.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Nobody to believe.
    #[error(
        "Apple Maps needs the root certificates of this system, and there are none (ca-certificates?)"
    )]
    Roots,
}

impl AppleArgs {
    /// The client, where there are credentials.
    ///
    /// # Errors
    /// When they are incomplete or wrong.
    pub fn client(&self, limits: Limits) -> Result<Option<AppleMaps>, AppleError> {
        let Self { apple_maps_key, apple_maps_key_id, apple_maps_team_id, apple_maps_url } = self;
        let (Some(key), Some(key_id), Some(team_id)) =
            (apple_maps_key, apple_maps_key_id, apple_maps_team_id)
        else {
            let missing: Vec<&str> = [
                ("--apple-maps-key", apple_maps_key.is_none()),
                ("--apple-maps-key-id", apple_maps_key_id.is_none()),
                ("--apple-maps-team-id", apple_maps_team_id.is_none()),
            ]
            .into_iter()
            .filter_map(|(name, missing)| missing.then_some(name))
            .collect();
            return match missing.len() {
                3 => Ok(None),
                n => Err(AppleError::Incomplete { missing: missing.join(" and "), several: n > 1 }),
            };
        };
        let key = AppleKey::read(key, key_id, team_id)?;
        let roots = if apple_maps_url.starts_with("https:") {
            system_roots().ok_or(AppleError::Roots)?
        } else {
            RootCertStore::empty()
        };
        Ok(Some(AppleMaps::new(apple_maps_url, roots, key, limits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &AppleArgs) -> String {
        args.client(Limits::default()).unwrap_err().to_string()
    }

    #[test]
    fn credentials_are_all_there_or_none() {
        let url = AppleMaps::URL.to_owned();
        let none = AppleArgs { apple_maps_url: url, ..AppleArgs::default() };
        assert!(none.client(Limits::default()).unwrap().is_none());
        let some = AppleArgs { apple_maps_key_id: Some("ABC123DEFG".into()), ..none.clone() };
        assert!(
            refusal(&some).starts_with("--apple-maps-key and --apple-maps-team-id are missing: ")
        );
        let some = AppleArgs { apple_maps_key: Some("k.p8".into()), ..some };
        assert!(refusal(&some).starts_with("--apple-maps-team-id is missing: "));
    }

    #[test]
    fn a_key_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("AuthKey.p8");
        let args = AppleArgs {
            apple_maps_key: Some(file.clone()),
            apple_maps_key_id: Some("ABC123DEFG".into()),
            apple_maps_team_id: Some("DEF123GHIJ".into()),
            apple_maps_url: "http://127.0.0.1:1".into(),
        };
        std::fs::write(&file, "no key").unwrap();
        assert!(refusal(&args).contains("AuthKey.p8: no PKCS#8 private key"));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        std::fs::write(&file, key.serialize_pem()).unwrap();
        assert!(args.client(Limits::default()).unwrap().is_some());
        let elsewhere = AppleArgs { apple_maps_url: "http://192.0.2.1".into(), ..args };
        assert!(refusal(&elsewhere).contains("no https URL"));
    }
}
