//! The Workload API's X.509 messages as core types, both ways, and a client for them.

use std::collections::HashMap;

use countersign_findings::{Code, Finding};
use countersign_identity::{
    Bundle, BundleSet, PrivateKeyDer, SpiffeId, TrustDomain, X509Context, X509Svid,
};
use countersign_x509::pem::split_der;

use crate::proto::spiffe;
use crate::proto::spiffe::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::rpc::{Channel, Request, Status, Streaming};

/// The security header that every call must carry (Workload Endpoint §3).
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Whether a request carries the security header.
pub fn has_security_header<T>(request: &Request<T>) -> bool {
    request.metadata().get(SECURITY_HEADER).is_some_and(|v| v == "true")
}

/// A full set for the wire. Bundles of the SVIDs' own trust domains travel with them, the others as
/// federated bundles.
pub fn from_context(context: &X509Context) -> spiffe::X509svidResponse {
    let own: Vec<&TrustDomain> = context.svids.iter().map(|s| s.id.trust_domain()).collect();
    spiffe::X509svidResponse {
        svids: context
            .svids
            .iter()
            .map(|svid| spiffe::X509svid {
                spiffe_id: svid.id.to_string(),
                x509_svid: svid.chain.concat(),
                x509_svid_key: svid.key.expose_pkcs8().to_vec(),
                bundle: context
                    .bundles
                    .bundle(svid.id.trust_domain())
                    .map(|b| b.x509_der_concatenated())
                    .unwrap_or_default(),
                hint: svid.hint.clone(),
            })
            .collect(),
        crl: Vec::new(),
        federated_bundles: bundles_by_id(&context.bundles, |td| !own.contains(&td)),
    }
}

/// Bundles for the wire, keyed by the trust domain's SPIFFE ID (§5.2).
pub fn bundles_by_id(
    bundles: &BundleSet,
    keep: impl Fn(&TrustDomain) -> bool,
) -> HashMap<String, Vec<u8>> {
    bundles
        .iter()
        .filter(|b| keep(&b.trust_domain))
        .map(|b| (b.trust_domain.id().to_string(), b.x509_der_concatenated()))
        .collect()
}

/// Reads a full set; a mandatory field that is empty or malformed discards the whole message (§4.5).
pub fn to_context(response: spiffe::X509svidResponse) -> Result<X509Context, Finding> {
    let bad = |what: String| Finding::new(Code::MalformedCertificate, what).at("Workload API");
    let mut context = X509Context::default();
    for svid in response.svids {
        let id = SpiffeId::parse(&svid.spiffe_id)
            .map_err(|e| bad(format!("spiffe_id `{}`: {e}", svid.spiffe_id)))?;
        let chain = split_der(&svid.x509_svid)
            .filter(|c| !c.is_empty())
            .ok_or_else(|| bad(format!("x509_svid of `{id}` is not concatenated DER")))?;
        if svid.x509_svid_key.is_empty() {
            return Err(bad(format!("x509_svid_key of `{id}` is empty")));
        }
        let roots = split_der(&svid.bundle)
            .filter(|c| !c.is_empty())
            .ok_or_else(|| bad(format!("bundle of `{id}` is empty or not concatenated DER")))?;
        context.bundles.set(Bundle::of_x509(id.trust_domain().clone(), roots));
        context.svids.push(X509Svid {
            id,
            chain,
            key: PrivateKeyDer::new(svid.x509_svid_key),
            hint: svid.hint,
        });
    }
    for (id, der) in response.federated_bundles {
        let td = TrustDomain::from_name_or_id(&id).map_err(|e| bad(e.to_string()))?;
        let roots = split_der(&der).ok_or_else(|| bad(format!("bundle of `{td}` is not DER")))?;
        context.bundles.set(Bundle::of_x509(td, roots));
    }
    if context.svids.is_empty() {
        return Err(bad("the response holds no SVID".into()));
    }
    Ok(context)
}

/// A request with the security header.
pub fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(SECURITY_HEADER, tonic::metadata::MetadataValue::from_static("true"));
    request
}

/// Opens the stream of trust domains' JWT keys.
pub async fn watch_jwt_bundles(
    channel: Channel,
) -> Result<Streaming<spiffe::JwtBundlesResponse>, Status> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    Ok(client.fetch_jwt_bundles(request(spiffe::JwtBundlesRequest {})).await?.into_inner())
}

/// Opens the stream of full X.509 sets.
pub async fn watch_x509(channel: Channel) -> Result<Streaming<spiffe::X509svidResponse>, Status> {
    let mut client = SpiffeWorkloadApiClient::new(channel);
    Ok(client.fetch_x509svid(request(spiffe::X509svidRequest {})).await?.into_inner())
}
