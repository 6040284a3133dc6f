//! TLS towards clients: certificates from files, which are read again when they change.
//!
//! A [`ServerTls`] lives as long as its chain; a rotated certificate is swapped
//! inside it, so connections, tickets and settings are not disturbed. Knows no
//! sockets.

use std::{
    iter,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;
use towpath_policies::model::TlsServer;

use crate::{
    lock::lock,
    stamp::{self, Stamp},
};

/// Why certificates cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The certificate file cannot be used.
    #[error("certificate file {}: {reason}; give a readable PEM file, leaf certificate first", .path.display())]
    Certificate {
        /// As in the policy.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key file cannot be used.
    #[error("private key file {}: {reason}; give a readable, unencrypted PEM key (PKCS#8, SEC1 or PKCS#1)", .path.display())]
    Key {
        /// As in the policy.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// They do not belong together.
    #[error("private key {} does not belong to certificate {}", .key.display(), .certificate.display())]
    Mismatch {
        /// Key file.
        key: PathBuf,
        /// Certificate file.
        certificate: PathBuf,
    },
    /// The TLS library refused the settings.
    #[error("TLS settings: {0}")]
    Settings(#[from] rustls::Error),
}

/// The TLS side of one chain.
#[derive(Debug)]
pub(crate) struct ServerTls {
    spec: TlsServer,
    keys: Arc<Keys>,
    read: Mutex<Read>,
    settings: Arc<ServerConfig>,
}

/// What was made of the files.
#[derive(Debug)]
struct Read {
    /// Of the files in use.
    stamp: Stamps,
    /// The last failure that was told: tried again, but not told again.
    failed: Option<(Stamps, String)>,
}

/// Of all files.
type Stamps = Vec<Option<Stamp>>;

/// Serves whatever certificate is current, to any name: the chain was chosen by name before. Of two it
/// is the first whose kind of key the client takes.
#[derive(Debug)]
struct Keys(ArcSwap<Vec<Arc<CertifiedKey>>>);

impl ResolvesServerCert for Keys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let keys = self.0.load();
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // The handshake says what is wrong where none fits.
        keys.iter().find(fits).or_else(|| keys.first()).cloned()
    }
}

impl ServerTls {
    /// Reads the files and builds the settings.
    pub(crate) fn new(spec: &TlsServer) -> Result<Self, TlsError> {
        // Taken before the files are read: a change in between is then seen as one.
        let stamp = stamps(spec);
        let keys = Arc::new(Keys(ArcSwap::from_pointee(load(spec)?)));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(keys.clone());
        config.alpn_protocols = spec.alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        let read = Mutex::new(Read { stamp, failed: None });
        Ok(Self { spec: spec.clone(), keys, read, settings: Arc::new(config) })
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.settings.clone().into()
    }

    pub(crate) fn spec(&self) -> &TlsServer {
        &self.spec
    }

    /// Reads the files again if they changed. On an error the old certificate stays in
    /// use; the next call tries again, and is silent about the same error.
    pub(crate) fn reload(&self) -> Result<bool, TlsError> {
        let now = stamps(&self.spec);
        let mut read = lock(&self.read);
        if read.stamp == now {
            return Ok(false);
        }
        match load(&self.spec) {
            Ok(keys) => {
                self.keys.0.store(Arc::new(keys));
                *read = Read { stamp: now, failed: None };
                Ok(true)
            }
            Err(error) => {
                let failed = Some((now, error.to_string()));
                if read.failed == failed {
                    return Ok(false);
                }
                read.failed = failed;
                Err(error)
            }
        }
    }
}

/// Certificate and key of each pair.
fn pairs(spec: &TlsServer) -> impl Iterator<Item = (&Path, &Path)> {
    let second = spec.second.as_ref();
    iter::once((spec.certificate_file.as_path(), spec.private_key_file.as_path()))
        .chain(second.map(|s| (s.certificate_file.as_path(), s.private_key_file.as_path())))
}

fn stamps(spec: &TlsServer) -> Stamps {
    pairs(spec).flat_map(|(certificate, key)| [stamp::of(certificate), stamp::of(key)]).collect()
}

/// All pairs or none, so that what is served fits together.
fn load(spec: &TlsServer) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    pairs(spec).map(|(certificate, key)| load_pair(certificate, key).map(Arc::new)).collect()
}

fn load_pair(certificate_file: &Path, key_file: &Path) -> Result<CertifiedKey, TlsError> {
    let chain = certificates(certificate_file)?;
    let bad_key = |reason: String| TlsError::Key { path: key_file.to_owned(), reason };
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| bad_key(describe(&error)))?;
    let key =
        aws_lc_rs::sign::any_supported_type(&key).map_err(|error| bad_key(error.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        // Unknown: the key cannot tell its public half. The handshake will.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(certified)
        }
        Err(rustls::Error::InconsistentKeys(_)) => Err(TlsError::Mismatch {
            key: key_file.to_owned(),
            certificate: certificate_file.to_owned(),
        }),
        Err(error) => Err(TlsError::Certificate {
            path: certificate_file.to_owned(),
            reason: error.to_string(),
        }),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::Certificate { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad(describe(&error)))?;
    if chain.is_empty() {
        return Err(bad("there is no certificate in it".into()));
    }
    Ok(chain)
}

fn describe(error: &rustls_pki_types::pem::Error) -> String {
    match error {
        rustls_pki_types::pem::Error::Io(error) => error.to_string(),
        rustls_pki_types::pem::Error::NoItemsFound => "there is no PEM block of this kind".into(),
        error => error.to_string(),
    }
}
