//! TLS on both sides ↔ transport sockets.

use std::{iter, path::Path};

use envoy_types::pb::{
    envoy::{
        config::core::v3::{TransportSocket, transport_socket::ConfigType},
        extensions::transport_sockets::{
            raw_buffer::v3::RawBuffer,
            tls::v3::{
                CertificateValidationContext, CommonTlsContext, DownstreamTlsContext,
                SubjectAltNameMatcher, TlsCertificate, UpstreamTlsContext,
                common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
            },
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::Any,
};
use prost::{Message, Name};
use towpath_policies::model::{KeyFiles, Protocol, TlsServer, UpstreamTls};

use super::common::{At, Result, file, pack, read_bool, read_file, refuse, refuse_if, unpack};

pub(super) fn encode_server(tls: &TlsServer) -> TransportSocket {
    socket(&DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: iter::once(certificate(&tls.certificate_file, &tls.private_key_file))
                .chain(
                    tls.second
                        .iter()
                        .map(|s| certificate(&s.certificate_file, &s.private_key_file)),
                )
                .collect(),
            alpn_protocols: tls.alpn.clone(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn certificate(chain: &Path, key: &Path) -> TlsCertificate {
    TlsCertificate { certificate_chain: file(chain), private_key: file(key), ..Default::default() }
}

pub(super) fn decode_server(socket: Option<&TransportSocket>) -> Result<Option<TlsServer>> {
    let Some(any) = config(socket)? else { return Ok(None) };
    let pb: DownstreamTlsContext = unpack(any)?;
    refuse_if(
        read_bool(pb.require_client_certificate.as_ref()),
        "require_client_certificate",
        "client certificates are not supported, and nobody would be asked for one",
    )?;
    let common = pb.common_tls_context.unwrap_or_default();
    let (first, second) = match common.tls_certificates.as_slice() {
        [first] => (first, None),
        [first, second] => (first, Some(second)),
        _ => {
            return refuse("one certificate or two, from files, are supported (no SDS)")
                .at("common_tls_context.tls_certificates");
        }
    };
    let KeyFiles { certificate_file, private_key_file } = read_files(first)?;
    let second = second.map(read_files).transpose()?;
    Ok(Some(TlsServer { certificate_file, private_key_file, second, alpn: common.alpn_protocols }))
}

fn read_files(pb: &TlsCertificate) -> Result<KeyFiles> {
    Ok(KeyFiles {
        certificate_file: read_file(pb.certificate_chain.as_ref()).at("certificate_chain")?,
        private_key_file: read_file(pb.private_key.as_ref()).at("private_key")?,
    })
}

pub(super) fn encode_client(tls: &UpstreamTls, protocol: Protocol) -> TransportSocket {
    let san = SubjectAltNameMatcher {
        san_type: SanType::Dns as i32,
        matcher: Some(StringMatcher {
            match_pattern: Some(MatchPattern::Exact(tls.server_name.clone())),
            ignore_case: false,
        }),
        ..Default::default()
    };
    let alpn: &[&str] = match protocol {
        Protocol::Http2 => &["h2"],
        Protocol::Http1 => &["http/1.1"],
        Protocol::Follow | Protocol::Tcp => &[],
    };
    socket(&UpstreamTlsContext {
        sni: tls.server_name.clone(),
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: alpn.iter().map(|&p| p.to_owned()).collect(),
            validation_context_type: Some(ValidationContextType::ValidationContext(
                CertificateValidationContext {
                    // Without roots Envoy would verify nothing.
                    trusted_ca: file(tls.ca_file.as_deref().unwrap_or(Path::new(SYSTEM_ROOTS))),
                    match_typed_subject_alt_names: vec![san],
                    ..Default::default()
                },
            )),
            ..Default::default()
        }),
        ..Default::default()
    })
}

pub(super) fn decode_client(socket: Option<&TransportSocket>) -> Result<Option<UpstreamTls>> {
    let Some(any) = config(socket)? else { return Ok(None) };
    let pb: UpstreamTlsContext = unpack(any)?;
    let common = pb.common_tls_context.unwrap_or_default();
    refuse_if(
        !common.tls_certificates.is_empty()
            || !common.tls_certificate_sds_secret_configs.is_empty(),
        "common_tls_context",
        "client certificates are not supported",
    )?;
    let validation = match common.validation_context_type {
        None => CertificateValidationContext::default(),
        Some(ValidationContextType::ValidationContext(context)) => context,
        Some(_) => {
            return refuse("only an inline validation_context is supported (no SDS)")
                .at("common_tls_context.validation_context_type");
        }
    };
    refuse_if(
        !validation.verify_certificate_hash.is_empty()
            || !validation.verify_certificate_spki.is_empty(),
        "validation_context",
        "pinned certificates are not supported",
    )?;
    let server_name = server_name(&pb.sni, &validation)?;
    let ca_file = match &validation.trusted_ca {
        None => None,
        Some(source) => Some(read_file(Some(source)).at("validation_context.trusted_ca")?),
    };
    Ok(Some(UpstreamTls { server_name, ca_file }))
}

/// The name to send and to verify. They must be one, since the domain knows one.
fn server_name(sni: &str, validation: &CertificateValidationContext) -> Result<String> {
    let mut names = validation.match_typed_subject_alt_names.iter().map(|san| {
        match san.matcher.as_ref().and_then(|m| m.match_pattern.as_ref()) {
            Some(MatchPattern::Exact(name)) if san.san_type == SanType::Dns as i32 => Ok(name),
            _ => refuse("only an exact DNS name can be verified"),
        }
    });
    let verified = match (names.next(), names.next()) {
        (None, _) => None,
        (Some(name), None) => Some(name.at("match_typed_subject_alt_names")?),
        (Some(_), Some(_)) => {
            return refuse("only one name can be verified").at("match_typed_subject_alt_names");
        }
    };
    match (sni, verified) {
        ("", None) => refuse("is needed: it is the name that is verified").at("sni"),
        (sni, None) => Ok(sni.to_owned()),
        (sni, Some(name)) if sni.is_empty() || sni == name => Ok(name.clone()),
        (sni, Some(name)) => {
            refuse(format!("{sni:?} differs from the verified name {name:?}")).at("sni")
        }
    }
}

fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(context))),
    }
}

/// The typed configuration of a socket that is not plain.
fn config(socket: Option<&TransportSocket>) -> Result<Option<&Any>> {
    match socket.map(|s| s.config_type.as_ref()) {
        None => Ok(None),
        Some(Some(ConfigType::TypedConfig(any))) if any.type_url == RawBuffer::type_url() => {
            Ok(None)
        }
        Some(Some(ConfigType::TypedConfig(any))) => Ok(Some(any)),
        Some(None) => refuse("needs a typed_config"),
    }
}

/// Where Debian and most others keep the system's roots.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
