//! The admission webhook of Kubernetes: pods get their sidecars as they are created, by the code of
//! `towpath inject`.
//!
//! An API server asks over TLS and is answered with a patch; nothing is asked of it, so there is
//! no Kubernetes client here. Whom it asks for, and with whose certificate it trusts us, stands in
//! a `MutatingWebhookConfiguration` that the installation writes. Whatever a request holds, the
//! answer admits the pod (unless told otherwise) and says why there is no sidecar: a mesh must not
//! keep a cluster from starting pods.

mod certificate;
mod log;
mod options;
mod patch;
mod review;
mod serve;

pub use certificate::CertificateError;
pub use options::{
    Identity, OnProblem, WEBHOOK_HEADING, Webhook, WebhookArgs, WebhookOptionsError,
};
pub(crate) use serve::{Counts, Door};
