use super::failed;
use crate::recovery::{Found, Query, Recovery, RecoveryError, Scan};
use bitcoin::{FeeRate, Network, Transaction, Txid, constants::genesis_block};
use esplora_client::{AsyncClient, Builder};
use std::{fmt, time::Duration};

/// A server of Esplora's HTTP API. It learns the account's addresses; run one's own to keep them to oneself.
///
/// ```no_run
/// # async fn example(recovery: &quorate::recovery::Recovery) -> Result<(), quorate::recovery::RecoveryError> {
/// use quorate::recovery::source::Esplora;
/// let esplora = Esplora::new("https://blockstream.info/api")?;
/// let found = esplora.find(recovery).await?;
/// println!("{} coins at height {}", found.coins.len(), found.tip);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Esplora {
    url: String,
    client: AsyncClient,
}

impl fmt::Debug for Esplora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Esplora").field("url", &self.url).finish_non_exhaustive()
    }
}

const TIMEOUT: Duration = Duration::from_secs(30);
/// Blocks within which a sweep should be mined: it is in no hurry, its owner has waited for weeks.
const TARGET_BLOCKS: usize = 6;

impl Esplora {
    /// Names a server by the address of its API. Nothing is sent yet.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(url: &str) -> Result<Self, RecoveryError> {
        let url = url.trim_end_matches('/').to_owned();
        let client = Builder::new(&url).timeout(TIMEOUT).build_async();
        let client = client.map_err(|error| failed(&url, error))?;
        Ok(Self { url, client })
    }

    fn failed(&self, error: &esplora_client::Error) -> RecoveryError {
        failed(&self.url, error)
    }

    /// Finds the account's coins.
    ///
    /// # Errors
    /// The server does not answer, or is of another network.
    pub async fn find(&self, recovery: &Recovery) -> Result<Found, RecoveryError> {
        self.check_network(recovery.network()).await?;
        let tip = self.client.get_height().await.map_err(|error| self.failed(&error))?;
        let mut scan = Scan::new(recovery);
        while let Some(Query { position, script_pubkey }) = scan.next_query()? {
            let stats = self.client.get_scripthash_stats(&script_pubkey).await;
            let stats = stats.map_err(|error| self.failed(&error))?;
            let used = stats.chain_stats.tx_count > 0 || stats.mempool_stats.tx_count > 0;
            let coins = if used {
                let coins = self.client.get_scripthash_utxos(&script_pubkey).await;
                coins.map_err(|error| self.failed(&error))?
            } else {
                Vec::new()
            };
            let coins = coins.into_iter().map(|coin| {
                (bitcoin::OutPoint::new(coin.txid, coin.vout), coin.value, coin.status.block_height)
            });
            scan.answer(position, used, coins);
        }
        Ok(scan.finish(tip))
    }

    async fn check_network(&self, expected: Network) -> Result<(), RecoveryError> {
        let genesis = self.client.get_block_hash(0).await.map_err(|error| self.failed(&error))?;
        if genesis == genesis_block(expected).block_hash() {
            return Ok(());
        }
        let networks =
            [Network::Bitcoin, Network::Testnet, Network::Testnet4, Network::Signet, Network::Regtest];
        let found = networks.into_iter().find(|network| genesis == genesis_block(*network).block_hash());
        let found = found.map_or("an unknown network".to_owned(), |network| network.to_string());
        Err(RecoveryError::SourceNetwork { url: self.url.clone(), found, expected })
    }

    /// The server's estimate for six blocks; none if it has none.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn fee_rate(&self) -> Result<Option<FeeRate>, RecoveryError> {
        let estimates = self.client.get_fee_estimates().await.map_err(|error| self.failed(&error))?;
        Ok(esplora_client::convert_fee_rate(TARGET_BLOCKS, estimates))
    }

    /// Sends a transaction.
    ///
    /// # Errors
    /// The server does not answer, or the network refuses it: the reason is in the text.
    pub async fn send(&self, transaction: &Transaction) -> Result<Txid, RecoveryError> {
        self.client.broadcast(transaction).await.map_err(|error| self.failed(&error))
    }
}
