//! How the API is named on a command line.

use std::path::PathBuf;

use rustls::RootCertStore;

use super::CarbonApi;
use crate::fetch::{HttpError, system_roots};

/// Under which `--help` has them.
pub const CARBON_HEADING: &str =
    "Carbon intensity of this hour (without it, what the policies say of their regions counts)";

/// Options of those who ask for carbon intensities: both, or none.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct CarbonArgs {
    /// An API like that of Electricity Maps, e.g. `https://api.electricitymaps.com`
    #[arg(
        long,
        value_name = "URL",
        env = "TOWPATH_CARBON_API",
        requires = "carbon_api_token_file",
        help_heading = CARBON_HEADING
    )]
    pub carbon_api: Option<String>,

    /// File with the token that it wants (`auth-token`)
    #[arg(
        long,
        value_name = "FILE",
        env = "TOWPATH_CARBON_API_TOKEN_FILE",
        requires = "carbon_api",
        help_heading = CARBON_HEADING
    )]
    pub carbon_api_token_file: Option<PathBuf>,
}

/// Why the API cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum CarbonOptionsError {
    /// The file of the token.
    #[error("--carbon-api-token-file {}: {why}", file.display())]
    Token {
        /// Which.
        file: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The server.
    #[error("--carbon-api: {0}")]
    Http(#[from] HttpError),
    /// Nobody to believe.
    #[error(
        "--carbon-api needs the root certificates of this system, and there are none (ca-certificates?)"
    )]
    Roots,
}

impl CarbonArgs {
    /// The client, where there is one.
    ///
    /// # Errors
    /// When the options are wrong.
    pub fn client(&self) -> Result<Option<CarbonApi>, CarbonOptionsError> {
        let (Some(url), Some(file)) = (&self.carbon_api, &self.carbon_api_token_file) else {
            return Ok(None);
        };
        let wrong = |why: String| CarbonOptionsError::Token { file: file.clone(), why };
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong("no token: one word of visible ASCII".to_owned()));
        }
        let roots = match url.starts_with("https:") {
            true => system_roots().ok_or(CarbonOptionsError::Roots)?,
            false => RootCertStore::empty(),
        };
        Ok(Some(CarbonApi::new(url, roots, token.to_owned())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_none_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let args = CarbonArgs {
            carbon_api: Some("http://127.0.0.1:1".into()),
            carbon_api_token_file: Some(file.clone()),
        };
        let refusal = |args: &CarbonArgs| args.client().unwrap_err().to_string();
        assert!(refusal(&args).starts_with("--carbon-api-token-file "), "it is not there");
        for text in ["", " \n", "two words", "t\u{f6}ken"] {
            std::fs::write(&file, text).unwrap();
            assert!(refusal(&args).contains("no token"), "{text:?}");
        }
        std::fs::write(&file, "abc-123\n").unwrap();
        assert!(args.client().unwrap().is_some());
        let elsewhere = CarbonArgs { carbon_api: Some("http://192.0.2.1".into()), ..args };
        assert!(refusal(&elsewhere).contains("no https URL"));
        assert!(CarbonArgs::default().client().unwrap().is_none());
    }
}
