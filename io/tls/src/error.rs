//! Why a handshake failed, with its code.

use std::io;
use std::time::Duration;

use countersign_findings::{Code, Finding};
use countersign_x509::ChainError;
use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use crate::verifier::take_refusal;

/// A handshake that did not end in a session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// We did not accept the peer's chain.
    #[error("{0}")]
    Chain(Box<ChainError>),
    /// The peer showed no certificate where one is required.
    #[error("peer presented no certificate")]
    NoCertificate,
    /// The peer ended it with an alert.
    #[error("peer refused: TLS alert {0}")]
    Alert(String, Code),
    /// No common version, group, suite or scheme.
    #[error("peers have nothing in common: {0}")]
    Incompatible(String, Code),
    /// The peer's key is not that of the certificate it shows.
    #[error("peer's handshake signature does not verify with the certificate it presented")]
    KeyMismatch,
    /// What came was not TLS.
    #[error("peer does not speak TLS")]
    NotTls,
    /// It took too long.
    #[error("handshake did not finish within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection broke.
    #[error("connection ended during the handshake: {0}")]
    Io(io::Error),
    /// Anything else in the protocol.
    #[error("{0}")]
    Protocol(String),
}

impl HandshakeError {
    /// Reads the library's error; a refusal by our own verifier on this thread takes precedence.
    pub(crate) fn from_io(e: io::Error) -> Self {
        if let Some(refusal) = take_refusal() {
            return HandshakeError::Chain(Box::new(refusal));
        }
        match e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(tls) => Self::from_tls(tls),
            None => HandshakeError::Io(e),
        }
    }

    fn from_tls(e: &Error) -> Self {
        match e {
            Error::NoCertificatesPresented => HandshakeError::NoCertificate,
            Error::AlertReceived(alert) => {
                let code = match alert {
                    AlertDescription::ProtocolVersion => Code::TlsVersionMismatch,
                    AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
                        Code::TlsParameterMismatch
                    }
                    _ => Code::RefusedByPeer,
                };
                HandshakeError::Alert(format!("{alert:?}"), code)
            }
            Error::PeerIncompatible(why) => {
                let code = match why {
                    PeerIncompatible::SupportedVersionsExtensionRequired
                    | PeerIncompatible::Tls12NotOffered
                    | PeerIncompatible::Tls12NotOfferedOrEnabled
                    | PeerIncompatible::Tls13RequiredForQuic
                    | PeerIncompatible::ServerDoesNotSupportTls12Or13
                    | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig => {
                        Code::TlsVersionMismatch
                    }
                    _ => Code::TlsParameterMismatch,
                };
                HandshakeError::Incompatible(format!("{why:?}"), code)
            }
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => HandshakeError::NotTls,
            // Our chain validation reports through `take_refusal`; what is left is CertificateVerify.
            Error::InvalidCertificate(rustls::CertificateError::BadSignature) => {
                HandshakeError::KeyMismatch
            }
            other => HandshakeError::Protocol(other.to_string()),
        }
    }

    /// The code that an alert received after the handshake stands for: in TLS 1.3 a server judges the
    /// client's certificate only after the client is done.
    pub fn of_established(e: &io::Error) -> Option<Self> {
        e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(Self::from_tls)
    }

    /// The catalogue's code.
    pub fn code(&self) -> Code {
        match self {
            HandshakeError::Chain(e) => e.code(),
            HandshakeError::NoCertificate => Code::NoClientCertificate,
            HandshakeError::Alert(_, code) | HandshakeError::Incompatible(_, code) => *code,
            HandshakeError::KeyMismatch => Code::KeyCertificateMismatch,
            HandshakeError::NotTls => Code::PeerNotTls,
            HandshakeError::Timeout(_) => Code::HandshakeTimeout,
            HandshakeError::Io(_) | HandshakeError::Protocol(_) => Code::HandshakeFailed,
        }
    }

    /// The catalogue's view.
    pub fn finding(&self) -> Finding {
        match self {
            HandshakeError::Chain(e) => e.finding(),
            other => Finding::new(other.code(), other.to_string()),
        }
    }
}
