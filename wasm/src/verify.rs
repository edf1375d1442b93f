//! What a page can check that trusts nobody but the federation it pins.

use crate::{error::Failure, js::from_json, plain::to_js};
use bitcoin::Address;
use quorate::{
    FederationDocument, FederationId,
    account::AccountCertificate,
    finality::FinalityProof,
    headers::{Checkpoint, HeaderChain},
    wire::RawTransactionProof,
};
use serde::Serialize;
use std::{cell::RefCell, rc::Rc};
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};

/// A federation whose document was verified against the id that its user pins.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Federation {
    pub(crate) inner: quorate::Federation,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FederationView {
    id: String,
    network: String,
    epoch: u32,
    group_key: String,
    nodes: u16,
    quorum: u16,
    recovery_delay: u16,
    members: Vec<MemberView>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberView {
    id: u16,
    identity_key: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutputView {
    vout: u32,
    value: u64,
    script_pubkey: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FinalView {
    txid: String,
    finality: quorate::finality::FinalityKind,
    transaction: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<u32>,
    signers: u16,
    inputs: Vec<String>,
    outputs: Vec<OutputView>,
}

#[cfg(feature = "wallet")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccusationView {
    node: u16,
    kind: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountView {
    id: String,
    descriptor: String,
}

#[wasm_bindgen]
impl Federation {
    /// Verifies a document against the pinned id.
    #[wasm_bindgen(constructor)]
    pub fn new(document: &str, pinned: &str) -> Result<Federation, JsValue> {
        Ok(verify_document(document, pinned)?)
    }

    /// What the document says.
    pub fn info(&self) -> JsValue {
        let federation = &self.inner;
        let members = federation
            .members()
            .iter()
            .map(|member| MemberView { id: member.id.0, identity_key: member.identity_key.to_string() });
        to_js(&FederationView {
            id: federation.id().to_string(),
            network: federation.network().to_string(),
            epoch: u32::try_from(federation.epoch().0).unwrap_or(u32::MAX),
            group_key: federation.group_key().to_string(),
            nodes: federation.quorum().nodes(),
            quorum: federation.quorum().votes(),
            recovery_delay: federation.roster().recovery_delay,
            members: members.collect(),
        })
    }

    /// The document as JSON.
    pub fn document(&self) -> String {
        serde_json::to_string(self.inner.document()).expect("own types are written without fail")
    }

    /// Checks that a transaction is final.
    #[wasm_bindgen(js_name = verifyProof)]
    pub fn verify_proof(&self, proof: &str) -> Result<JsValue, JsValue> {
        let proof: FinalityProof = from_json("proof", proof)?;
        let verified = proof.verify(&self.inner);
        verified.map_err(|error| Failure::new("invalid_proof", error))?;
        Ok(to_js(&final_view(&self.inner, &proof)))
    }

    /// Checks an account's certificate.
    #[wasm_bindgen(js_name = verifyAccount)]
    pub fn verify_account(&self, certificate: &str) -> Result<JsValue, JsValue> {
        let certificate: AccountCertificate = from_json("certificate", certificate)?;
        let account =
            certificate.verify(&self.inner).map_err(|error| Failure::new("invalid_account", error))?;
        Ok(to_js(&AccountView { id: account.id().to_string(), descriptor: account.descriptor().to_string() }))
    }
}

// Evidence holds whole signing sessions; a page that checks payments has no use for them, and they double the module.
#[cfg(feature = "wallet")]
#[wasm_bindgen]
impl Federation {
    /// Checks that a node cheated.
    #[wasm_bindgen(js_name = verifyEvidence)]
    pub fn verify_evidence(&self, evidence: &str) -> Result<JsValue, JsValue> {
        let evidence: quorate::evidence::Evidence = from_json("evidence", evidence)?;
        let node = evidence.verify(&self.inner).map_err(|error| Failure::new("invalid_evidence", error))?;
        Ok(to_js(&AccusationView { node: node.0, kind: evidence.kind().to_string() }))
    }
}

fn verify_document(document: &str, pinned: &str) -> Result<Federation, Failure> {
    let pinned: FederationId = pinned.parse().map_err(|error| Failure::argument("federation id", error))?;
    let document: FederationDocument = from_json("federation document", document)?;
    let inner = document.verify(pinned).map_err(|error| Failure::new("invalid_federation", error))?;
    Ok(Federation { inner })
}

fn final_view(federation: &quorate::Federation, proof: &FinalityProof) -> FinalView {
    let transaction = proof.transaction();
    let outputs = transaction.output.iter().zip(0..).map(|(output, vout)| OutputView {
        vout,
        value: output.value.to_sat(),
        script_pubkey: output.script_pubkey.to_hex_string(),
        address: Address::from_script(&output.script_pubkey, federation.network())
            .ok()
            .map(|one| one.to_string()),
    });
    let signers = match proof {
        FinalityProof::Enforced { certificate, .. } => certificate.approvals.len(),
        FinalityProof::Attested { commits, .. } => commits.len(),
    };
    FinalView {
        txid: proof.txid().to_string(),
        finality: proof.kind(),
        transaction: bitcoin::consensus::encode::serialize_hex(transaction),
        deadline: proof.custody().deadline(),
        signers: u16::try_from(signers).unwrap_or(u16::MAX),
        inputs: proof.outpoints().map(|outpoint| outpoint.to_string()).collect(),
        outputs: outputs.collect(),
    }
}

/// Block headers from a checkpoint on, with proof of work checked.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Headers {
    inner: Rc<RefCell<HeaderChain>>,
}

#[wasm_bindgen]
impl Headers {
    /// Starts at the genesis block of a network, or at a trusted header (80 bytes in hex) with its height.
    #[wasm_bindgen(constructor)]
    pub fn new(network: &str, height: Option<u32>, header: Option<String>) -> Result<Headers, JsValue> {
        let network = network.parse().map_err(|error| Failure::argument("network", error))?;
        let checkpoint = match (height, header) {
            (Some(height), Some(header)) => {
                Checkpoint { height, header: parse_header("checkpoint", &header)? }
            }
            _ => Checkpoint::genesis(network),
        };
        Ok(Self { inner: Rc::new(RefCell::new(HeaderChain::new(network, checkpoint))) })
    }

    /// Takes in consecutive headers, each 80 bytes in hex; a branch replaces the chain if it has more work. Gives the
    /// height of the tip.
    pub fn extend(&self, headers: Vec<String>) -> Result<u32, JsValue> {
        let headers: Vec<_> =
            headers.iter().map(|text| parse_header("headers", text)).collect::<Result<_, _>>()?;
        let mut chain = self.inner.borrow_mut();
        chain.extend(&headers).map_err(|error| Failure::new("invalid_headers", error))?;
        Ok(chain.tip().height)
    }

    /// Checks that a transaction is in a block of the chain (the `proof` of a `Proof` message, as JSON). Gives its
    /// confirmations.
    #[wasm_bindgen(js_name = verifyInclusion)]
    pub fn verify_inclusion(&self, txid: &str, proof: &str) -> Result<u32, JsValue> {
        let txid = txid.parse().map_err(|error| Failure::argument("txid", error))?;
        let proof: RawTransactionProof = from_json("proof", proof)?;
        let chain = self.inner.borrow();
        chain.verify(txid, &proof).map_err(|error| Failure::new("invalid_inclusion", error))?;
        Ok(chain.confirmations(&proof.block))
    }
}

fn parse_header(name: &str, text: &str) -> Result<bitcoin::block::Header, Failure> {
    bitcoin::consensus::encode::deserialize_hex(text).map_err(|error| Failure::argument(name, error))
}
