//! Several backends in the order of their owner's preference, one of which is asked at a time.
//!
//! The preferred one is left when it does not answer, gives what does not follow the rules, is not at its tip or behind
//! the others; it is gone back to within a minute after that is over.

use super::{
    Answer, Bitcoind, Chain, ChainError, Esplora, Fees,
    birthday::check,
    doubt::{BEHIND_MAX, doubt, tip_of},
};
use crate::config::{ChainConfig, ChainKind};
use bitcoin::{Block, BlockHash, Network, OutPoint, ScriptBuf, Transaction, Txid, block::Header};
use futures_util::future::join_all;
use quorate_protocol::headers::Checkpoint;
use quorate_rules::ChainCoin;
use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// How long one that gave cause for it is passed over, and how often it is looked whether a better one is back.
const AGAIN: Duration = Duration::from_secs(60);
/// How long one may take to say how it is.
const TIMEOUT: Duration = Duration::from_secs(5);

struct Member {
    /// Its address.
    name: String,
    chain: Box<dyn Chain>,
    /// Until when it is passed over.
    out: Mutex<Option<Instant>>,
}

impl Member {
    fn is_out(&self) -> bool {
        let out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.is_some_and(|until| Instant::now() < until)
    }

    /// Height of its tip, and what there is against it.
    async fn look(&self, network: Network, birthday: Checkpoint) -> Result<(u32, Option<String>), String> {
        let looked = async {
            let chain = &*self.chain;
            chain.choose(network, birthday, false).await?;
            check(chain, network, birthday).await?;
            let (header, height) = tip_of(chain).await?;
            Ok::<_, ChainError>((height, doubt(chain, network, &header).await?))
        };
        let answer = tokio::time::timeout(TIMEOUT, looked).await;
        answer.map_err(|_| format!("no answer in {TIMEOUT:?}"))?.map_err(|error| error.to_string())
    }
}

/// The backends of a node.
pub struct Backends {
    members: Vec<Member>,
    current: AtomicUsize,
    /// When they were compared last.
    looked: Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Backends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.members.iter().map(|member| member.name.as_str()).collect();
        f.debug_tuple("Backends").field(&names).finish()
    }
}

impl Backends {
    /// Backends as they are configured, the preferred one first. Nothing is asked yet.
    ///
    /// # Errors
    /// An address cannot be used.
    pub fn open(configs: &[ChainConfig]) -> Result<Self, ChainError> {
        let chains = configs.iter().map(|config| {
            let chain: Box<dyn Chain> = match config.kind {
                ChainKind::Bitcoind if config.url.to_ascii_lowercase().starts_with("https:") => {
                    return Err(ChainError::Tls(config.url.clone()));
                }
                ChainKind::Bitcoind => Box::new(Bitcoind::open(config)),
                ChainKind::Esplora => Box::new(Esplora::new(&config.url)?),
            };
            Ok((config.url.clone(), chain))
        });
        Ok(Self::new(chains.collect::<Result<_, ChainError>>()?))
    }

    /// Backends with their names, the preferred one first; at least one.
    pub fn new(chains: Vec<(String, Box<dyn Chain>)>) -> Self {
        let member = |(name, chain)| Member { name, chain, out: Mutex::default() };
        let members = chains.into_iter().map(member).collect();
        Self { members, current: AtomicUsize::new(0), looked: Mutex::default() }
    }

    /// The name of the one that is asked.
    pub fn name(&self) -> &str {
        &self.member().name
    }

    fn member(&self) -> &Member {
        let current = self.members.get(self.current.load(Ordering::Relaxed));
        current.or_else(|| self.members.first()).expect("a node has a backend")
    }

    fn chain(&self) -> &dyn Chain {
        &*self.member().chain
    }

    /// Whether it is time to compare; notes that it was done.
    fn is_due(&self, troubled: bool) -> bool {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let second_best = self.current.load(Ordering::Relaxed) > 0;
        let due = troubled || looked.is_none_or(|at| second_best && at.elapsed() >= AGAIN);
        if due {
            *looked = Some(Instant::now());
        }
        due
    }

    async fn compare(&self, network: Network, birthday: Checkpoint) {
        let found = join_all(self.members.iter().map(|member| member.look(network, birthday))).await;
        let sound = |at: usize| {
            let member = self.members.get(at).filter(|member| !member.is_out());
            member.and(found.get(at)?.as_ref().ok()).filter(|(_, doubt)| doubt.is_none())
        };
        let numbers = 0..self.members.len();
        let highest = numbers.clone().filter_map(sound).map(|(height, _)| *height).max();
        let is_best = |at: &usize| sound(*at).map(|(height, _)| height.saturating_add(BEHIND_MAX)) >= highest;
        let answers = |at: &usize| found.get(*at).is_some_and(Result::is_ok);
        let chosen = match highest {
            Some(_) => numbers.clone().find(is_best),
            // A tip in doubt is followed, and not voted by.
            None => numbers.clone().find(answers),
        };
        let current = self.current.load(Ordering::Relaxed);
        let Some(chosen) = chosen.filter(|chosen| *chosen != current) else { return };
        let why = match found.get(current) {
            Some(Err(error)) => error.clone(),
            Some(Ok((_, Some(doubt)))) => doubt.clone(),
            Some(Ok((height, None))) => format!("it is at block {height}"),
            None => String::new(),
        };
        let (from, to) = (self.name().to_owned(), self.members.get(chosen).map(|one| one.name.as_str()));
        tracing::info!(from, to, why, "another chain backend is asked from now on");
        self.current.store(chosen, Ordering::Relaxed);
    }

    /// What the others say against the one that is asked: it is behind them.
    async fn behind(&self) -> Option<String> {
        let height = async |member: &Member| {
            let asked = tokio::time::timeout(TIMEOUT, tip_of(&*member.chain)).await;
            asked.ok()?.ok().map(|(_, height)| height)
        };
        let asked = join_all(
            self.members
                .iter()
                .map(|member| async move { if member.is_out() { None } else { height(member).await } }),
        );
        let heights = asked.await;
        let own = (*heights.get(self.current.load(Ordering::Relaxed))?)?;
        let others = self.members.iter().zip(heights).filter_map(|(member, height)| Some((member, height?)));
        let (other, theirs) = others.max_by_key(|(_, height)| *height)?;
        let behind = theirs > own.saturating_add(BEHIND_MAX);
        behind.then(|| format!("it is at block {own}, and {} at block {theirs}", other.name))
    }
}

impl Chain for Backends {
    fn preference(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    fn choose(&self, network: Network, birthday: Checkpoint, troubled: bool) -> Answer<'_, ()> {
        Box::pin(async move {
            if self.members.len() == 1 {
                return self.chain().choose(network, birthday, troubled).await;
            }
            if self.is_due(troubled) {
                if troubled {
                    let mut out = self.member().out.lock().unwrap_or_else(PoisonError::into_inner);
                    *out = Some(Instant::now() + AGAIN);
                }
                self.compare(network, birthday).await;
            }
            Ok(())
        })
    }

    fn tip(&self) -> Answer<'_, BlockHash> {
        self.chain().tip()
    }

    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
        self.chain().wait_for_tip(known)
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
        self.chain().header(hash)
    }

    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
        self.chain().hash_at(height)
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        self.chain().block(hash)
    }

    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        self.chain().coin(outpoint)
    }

    fn unspent(&self, scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
        self.chain().unspent(scripts)
    }

    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()> {
        self.chain().broadcast(transaction)
    }

    fn broadcast_all(&self, transactions: Vec<Transaction>) -> Answer<'_, Vec<Result<(), ChainError>>> {
        self.chain().broadcast_all(transactions)
    }

    fn doubt(&self) -> Answer<'_, Option<String>> {
        Box::pin(async {
            let doubt = match self.chain().doubt().await? {
                None if self.members.len() > 1 => self.behind().await,
                doubt => doubt,
            };
            Ok(doubt.map(|doubt| format!("{}: {doubt}", self.name())))
        })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        self.chain().fees()
    }

    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
        self.chain().broadcast_package(package)
    }

    fn missing(&self, txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
        self.chain().missing(txids)
    }
}
