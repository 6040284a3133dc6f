//! How the webhook is named on a command line.

use std::{net::SocketAddr, path::PathBuf};

use towpath_inject::{Options, Source};

/// Under which `--help` has them.
pub const WEBHOOK_HEADING: &str =
    "Admission webhook (Kubernetes): sidecars for pods as they are created";

/// Options of those who inject at admission.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct WebhookArgs {
    /// Where the API server asks (HTTPS); without it there is no webhook
    #[arg(long, value_name = "ADDR", help_heading = WEBHOOK_HEADING)]
    pub webhook: Option<SocketAddr>,

    /// Names by which the API server reaches it
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        default_value = DEFAULT_NAME,
        help_heading = WEBHOOK_HEADING
    )]
    pub webhook_name: Vec<String>,

    /// Folder with the authority, tls.crt and tls.key, that certificates are made and renewed with
    /// [default: webhook-ca in the state folder, where one is made]
    #[arg(
        long,
        value_name = "DIR",
        requires = "webhook",
        conflicts_with = "webhook_certificate",
        help_heading = WEBHOOK_HEADING
    )]
    pub webhook_ca: Option<PathBuf>,

    /// Folder with a certificate, tls.crt and tls.key, that somebody else renews; read again when it changes
    #[arg(long, value_name = "DIR", requires = "webhook", help_heading = WEBHOOK_HEADING)]
    pub webhook_certificate: Option<PathBuf>,

    /// Image of the sidecars [default: ghcr.io/towpath/proxy:VERSION]
    #[arg(long, value_name = "IMAGE", requires = "webhook", help_heading = WEBHOOK_HEADING)]
    pub webhook_image: Option<String>,

    /// Control plane that the sidecars obey [default: towpath-control-plane.towpath.svc:18000]
    #[arg(long, value_name = "ADDR", requires = "webhook", help_heading = WEBHOOK_HEADING)]
    pub webhook_control_plane: Option<String>,

    /// Also add an init step that redirects the pod's traffic to the sidecar; it needs NET_ADMIN
    #[arg(long, requires = "webhook", help_heading = WEBHOOK_HEADING)]
    pub webhook_intercept: bool,

    /// What becomes of a pod that cannot be given a sidecar
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        default_value = "warn",
        help_heading = WEBHOOK_HEADING
    )]
    pub webhook_on_problem: OnProblem,
}

/// What becomes of a pod that cannot be given a sidecar.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnProblem {
    /// It is created without one, and whoever creates it is warned
    #[default]
    Warn,
    /// It is not created
    Refuse,
}

/// A name in the namespace where sidecars look for the control plane by default.
const DEFAULT_NAME: &str = "towpath-control-plane.towpath.svc";

/// What a webhook needs.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// Where it listens.
    pub address: SocketAddr,
    /// Names that its certificate has.
    pub names: Vec<String>,
    /// Where its certificate comes from.
    pub identity: Identity,
    /// How sidecars are put in.
    pub options: Options,
    /// What becomes of pods that cannot have one.
    pub on_problem: OnProblem,
}

/// Where a certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An authority in this folder; `None` = one of our own, in the state folder.
    Authority(Option<PathBuf>),
    /// Somebody else keeps one in this folder.
    Given(PathBuf),
}

/// Options that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum WebhookOptionsError {
    /// A name that no certificate may have.
    #[error("--webhook-name {0:?}: expected a DNS name, e.g. {DEFAULT_NAME}")]
    Name(String),
    /// What no sidecar can be given.
    #[error("{0}")]
    Options(towpath_inject::Problem),
}

impl WebhookArgs {
    /// The webhook, where there is one.
    ///
    /// # Errors
    /// When the options are wrong.
    pub fn webhook(&self) -> Result<Option<Webhook>, WebhookOptionsError> {
        let Some(address) = self.webhook else { return Ok(None) };
        let names = self.webhook_name.clone();
        let is_name = |name: &String| rustls_pki_types::DnsName::try_from(name.as_str()).is_ok();
        if let Some(wrong) = names.iter().find(|name| !is_name(name)) {
            return Err(WebhookOptionsError::Name(wrong.clone()));
        }
        let mut options = Options::new(env!("CARGO_PKG_VERSION"));
        options.kind = Some(towpath_inject::Kind::Kubernetes);
        options.intercept = self.webhook_intercept;
        options.source = self.webhook_control_plane.clone().map(Source::ControlPlane);
        if let Some(image) = &self.webhook_image {
            options.image.clone_from(image);
        }
        options.check().map_err(WebhookOptionsError::Options)?;
        let identity = match &self.webhook_certificate {
            Some(folder) => Identity::Given(folder.clone()),
            None => Identity::Authority(self.webhook_ca.clone()),
        };
        let on_problem = self.webhook_on_problem;
        Ok(Some(Webhook { address, names, identity, options, on_problem }))
    }
}
