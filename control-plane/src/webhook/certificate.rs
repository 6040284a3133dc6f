//! Certificates: made with an authority and renewed, or read as somebody else renews them.
//!
//! API servers trust the authority by a `caBundle` that the installation wrote down once. So what
//! lasts is the authority, in a folder; certificates live in memory for days, and their keys never
//! touch a disk.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _};

/// How long a certificate of ours is good.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// After which part of that there is a new one.
const RENEW: Duration = Duration::from_secs(20 * 24 * 3600);
/// Good from so long ago: clocks differ.
const SKEW: Duration = Duration::from_secs(3600);
/// How long an authority of ours is good.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;
/// Names in a folder, as a Secret of type `kubernetes.io/tls` has them.
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// What is in a folder is no certificate with its key.
    #[error("{}: {what}", folder.display())]
    Unusable {
        /// Which.
        folder: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// Where certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Made with the authority in the folder, for these names.
    Authority(Vec<String>),
    /// As they are in the folder.
    Given,
}

/// Gives the certificate of the hour.
#[derive(Debug)]
pub(super) struct Keeper {
    folder: PathBuf,
    origin: Origin,
    /// What the files held when they were last read, whether it could be used or not.
    read: Option<Files>,
    renew_at: Option<SystemTime>,
}

#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Keeper {
    pub(super) fn new(folder: PathBuf, origin: Origin) -> Self {
        Self { folder, origin, read: None, renew_at: None }
    }

    /// What to serve with from now on, if that is something else than before. After an error the
    /// last one stays, and the same files are not tried again.
    pub(super) fn look(
        &mut self,
        now: SystemTime,
    ) -> Result<Option<Arc<ServerConfig>>, CertificateError> {
        let files = Files {
            certificate: read(&self.folder.join(CERTIFICATE))?,
            key: read(&self.folder.join(KEY))?,
        };
        let due = self.renew_at.is_some_and(|at| now >= at);
        if self.read.as_ref() == Some(&files) && !due {
            return Ok(None);
        }
        let made = match &self.origin {
            Origin::Given => given(&files),
            Origin::Authority(names) => signed(&files, names, now),
        };
        self.read = Some(files);
        if matches!(self.origin, Origin::Authority(_)) {
            self.renew_at = Some(now + RENEW);
        }
        let folder = self.folder.clone();
        made.map(Some).map_err(|what| CertificateError::Unusable { folder, what })
    }
}

/// Makes an authority in `folder` unless there is one.
pub(super) fn ensure_authority(folder: &Path, now: SystemTime) -> Result<(), CertificateError> {
    if folder.join(CERTIFICATE).exists() {
        return Ok(());
    }
    let unusable = |what: String| CertificateError::Unusable { folder: folder.to_owned(), what };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|cause| CertificateError::Io { path: folder.to_owned(), cause })?;
    let kept = folder.join(KEY);
    // A start that broke off left it there, or it is somebody else's: it is never replaced.
    let key = if kept.exists() {
        let key = key_of(&read(&kept)?).map_err(&unusable)?;
        KeyPair::try_from(&key).map_err(|error| unusable(format!("{KEY}: {error}")))?
    } else {
        let key = KeyPair::generate().map_err(|error| unusable(error.to_string()))?;
        write(&kept, 0o600, &key.serialize_pem())?;
        key
    };
    let certificate = authority(now).self_signed(&key);
    let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
    // The certificate last: with it, the authority is there.
    write(&folder.join(CERTIFICATE), 0o644, &certificate.pem())
}

/// Writes a file of the authority, whole or not at all.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), CertificateError> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".unfinished");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(mode).open(&unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(|cause| CertificateError::Io { path: path.to_owned(), cause })
}

fn authority(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Towpath admission webhook");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = (now - SKEW).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    read.map_err(|cause| CertificateError::Io { path: path.to_owned(), cause })?;
    Ok(bytes)
}

fn key_of(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("{KEY}: {error}"))
}

fn given(files: &Files) -> Result<Arc<ServerConfig>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&files.certificate).collect();
    let chain = chain.map_err(|error| format!("{CERTIFICATE}: {error}"))?;
    config(chain, key_of(&files.key)?)
}

/// A new certificate for `names`.
fn signed(files: &Files, names: &[String], now: SystemTime) -> Result<Arc<ServerConfig>, String> {
    let told = |error: rcgen::Error| error.to_string();
    let authority =
        KeyPair::try_from(&key_of(&files.key)?).map_err(|error| format!("{KEY}: {error}"))?;
    let first = CertificateDer::from_pem_slice(&files.certificate)
        .map_err(|error| format!("{CERTIFICATE}: {error}"))?;
    let issuer = Issuer::from_ca_cert_der(&first, authority)
        .map_err(|error| format!("{CERTIFICATE}: {error}"))?;
    let key = KeyPair::generate().map_err(told)?;
    let mut params = CertificateParams::new(names).map_err(told)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "towpath-control-plane");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - SKEW).into();
    params.not_after = (now + LIFE).into();
    let certificate = params.signed_by(&key, &issuer).map_err(told)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    config(vec![certificate.der().clone()], key.into())
}

fn config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("{CERTIFICATE} and {KEY}: {error}"))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests;
