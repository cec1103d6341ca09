//! Who calls, and what that allows. Every RPC names its requirement in its first line.

use std::sync::Arc;

use countersign_findings::{Code, Finding};
use countersign_store::AgentRecord;
use countersign_sys::PeerProcess;
use countersign_tls::current_time;
use countersign_wire::rpc::{Request, Status};
use countersign_wire::status::{Reason, agent_denied, from_finding};
use countersign_x509::PeerIdentity;

use crate::shared::Shared;

/// The other end of a connection, as established when it was accepted.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// Over the admin socket, whose permissions and peer credentials were checked.
    Local(PeerProcess),
    /// Over TLS with a verified certificate.
    Peer(Arc<PeerIdentity>),
    /// Over TLS without a certificate.
    Anonymous,
}

fn caller<T>(request: &Request<T>) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous)
}

fn refused(what: &str) -> Status {
    from_finding(&Finding::new(Code::CallerNotAuthorized, what))
}

impl Shared {
    /// An operator: the admin socket, or an identity whose entry is marked `admin`.
    pub(crate) fn require_admin<T>(&self, request: &Request<T>) -> Result<String, Status> {
        match caller(request) {
            Caller::Local(process) => Ok(format!("uid:{}", process.uid)),
            Caller::Peer(peer) => {
                let now = current_time();
                if peer.is_valid_at(now) && self.registry.is_admin(peer.id(), now) {
                    Ok(peer.id().to_string())
                } else {
                    Err(refused("this operation is for administrators"))
                }
            }
            Caller::Anonymous => Err(refused("this operation is for administrators")),
        }
    }

    /// The admin socket and nothing else.
    pub(crate) fn require_local<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match caller(request) {
            Caller::Local(_) => Ok(()),
            _ => Err(refused("this operation works only over the admin socket")),
        }
    }

    /// An attested agent with the certificate that is current for it. A renewed certificate becomes
    /// current on first use; the one before is refused from then on.
    pub(crate) async fn require_agent<T>(
        &self,
        request: &Request<T>,
    ) -> Result<AgentRecord, Status> {
        let Caller::Peer(peer) = caller(request) else {
            return Err(agent_denied(
                Code::AgentNotAttested,
                "agent presented no certificate",
                Reason::AgentNotAttested,
            ));
        };
        if !peer.is_valid_at(current_time()) {
            return Err(agent_denied(
                Code::AgentNotAttested,
                "agent's certificate has expired",
                Reason::AgentExpired,
            ));
        }
        let Some(agent) = self.registry.agent(peer.id()) else {
            return Err(agent_denied(
                Code::AgentNotAttested,
                "agent is not attested",
                Reason::AgentNotAttested,
            ));
        };
        if agent.banned {
            return Err(agent_denied(Code::AgentBanned, "agent is banned", Reason::AgentBanned));
        }
        let serial = &peer.leaf().serial;
        if agent.serial == *serial {
            return Ok(agent);
        }
        if agent.next_serial.as_ref() == Some(serial) {
            let promoted = self
                .registry
                .change_agent(&agent.id, |a| {
                    if a.next_serial.as_ref() != Some(serial) {
                        return a;
                    }
                    AgentRecord {
                        serial: serial.clone(),
                        not_after: a.next_not_after.unwrap_or(a.not_after),
                        next_serial: None,
                        next_not_after: None,
                        ..a
                    }
                })
                .await
                .map_err(|e| from_finding(&e))?;
            match promoted {
                Some(a) if a.banned => {
                    return Err(agent_denied(
                        Code::AgentBanned,
                        "agent is banned",
                        Reason::AgentBanned,
                    ));
                }
                Some(a) if a.serial == *serial => return Ok(a),
                _ => {}
            }
        }
        Err(agent_denied(
            Code::AgentNotAttested,
            "agent's certificate has been replaced by a newer one",
            Reason::AgentNotActive,
        ))
    }
}
