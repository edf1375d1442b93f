//! What a follower does with a backend.

use super::*;
use crate::{
    chain::fake::Backend,
    run::queue::{Waiting, queue},
};
use bitcoin::{CompactTarget, absolute::LockTime};

#[expect(clippy::wildcard_enum_match_arm, reason = "a follower says nothing else")]
/// Answers as a machine does that has read these blocks above the genesis block and can undo back to a height.
/// Gives the blocks that it has in the end.
async fn machine(mut read: Vec<Block>, floor: u32, mut inputs: Waiting) -> Vec<Block> {
    while let Some(input) = inputs.next().await {
        match input {
            Input::Reached { height, reply } => {
                let tip = u32::try_from(read.len()).expect("few");
                let at = height.checked_sub(1).map(|index| usize::try_from(index).expect("small"));
                let genesis = Checkpoint::genesis(Network::Regtest).header.block_hash();
                let hash = at.map_or(Some(genesis), |at| read.get(at).map(Block::block_hash));
                reply.send(Reached { tip, floor, hash }).expect("somebody waits");
            }
            Input::Headers { from, count, reply } => {
                let genesis = Checkpoint::genesis(Network::Regtest).header;
                let headers = std::iter::once(genesis).chain(read.iter().map(|block| block.header));
                let from = usize::try_from(from).expect("small");
                reply.send(headers.skip(from).take(count).collect()).expect("somebody waits");
            }
            Input::Blocks(blocks) => {
                let parent = blocks[0].header.prev_blockhash;
                let at = read.iter().position(|block| block.block_hash() == parent);
                read.truncate(at.map_or(0, |at| at + 1));
                read.extend(blocks);
            }
            Input::CaughtUp | Input::Doubt(None) | Input::Fees(_) => {}
            other => panic!("{other:?}"),
        }
    }
    read
}

/// One step of a follower whose machine has read that; gives what it has read then.
async fn step(backend: &Arc<Backend>, read: Vec<Block>, floor: u32) -> (Result<()>, Vec<Block>) {
    let (inputs, receiver) = queue();
    let follower = Follower {
        chain: backend.clone(),
        network: Network::Regtest,
        birthday: Checkpoint::genesis(Network::Regtest),
        inputs,
    };
    let machine = tokio::spawn(machine(read, floor, receiver));
    let result = follower.step(false).await.map(|_| ());
    drop(follower);
    (result, machine.await.expect("no panic"))
}

fn blocks(backend: &Backend) -> Vec<Block> {
    backend.with(|(blocks, _)| blocks.clone())
}

#[tokio::test]
async fn it_goes_on_from_the_block_that_was_read_last() {
    let backend = Arc::new(Backend::mined(50));
    let (result, read) = step(&backend, Vec::new(), 0).await;
    result.expect("follows");
    assert_eq!(read, blocks(&backend));
    backend.extend(50, 3, 100);
    backend.with(|(_, asked)| *asked = 0);
    let (result, read) = step(&backend, read, 0).await;
    result.expect("follows");
    assert_eq!(read, blocks(&backend));
    assert_eq!(backend.with(|(_, asked)| *asked), 3, "and asks for no block that it has read");
}

#[tokio::test]
async fn it_finds_the_fork_and_says_when_that_is_too_deep() {
    let backend = Arc::new(Backend::mined(50));
    let read = blocks(&backend);
    backend.extend(40, 12, 200);
    let (result, read_anew) = step(&backend, read.clone(), 40).await;
    result.expect("follows");
    assert_eq!(read_anew, blocks(&backend));
    let (result, kept) = step(&backend, read.clone(), 41).await;
    let error = result.expect_err("one more than can be undone").to_string();
    assert!(error.contains("quorate-node index rebuild"), "{error}");
    assert_eq!(kept, read);
}

#[tokio::test]
async fn a_backend_that_is_behind_is_waited_for_and_is_no_reorganisation() {
    let backend = Arc::new(Backend::mined(50));
    let read = blocks(&backend);
    backend.extend(20, 0, 0);
    for floor in [0, 40] {
        let (result, kept) = step(&backend, read.clone(), floor).await;
        let error = result.expect_err("30 blocks are missing").to_string();
        assert!(error.contains("at block 20") && error.contains("up to 50"), "{error}");
        assert_eq!(kept, read);
    }
}

#[tokio::test]
async fn a_damaged_block_and_another_network_are_refused() {
    let backend = Arc::new(Backend::mined(5));
    backend.with(|(blocks, _)| blocks[3].txdata[0].lock_time = LockTime::from_consensus(7));
    let (result, read) = step(&backend, Vec::new(), 0).await;
    let error = result.expect_err("its transactions are not those of its header").to_string();
    assert!(error.contains("another block"), "{error}");
    assert!(read.is_empty());
    // A list whose end is there twice has the same root.
    let backend = Arc::new(Backend::mined(1));
    backend.with(|(blocks, _)| {
        let coinbase = blocks[0].txdata[0].clone();
        blocks[0].txdata.push(coinbase);
        let root = blocks[0].compute_merkle_root().expect("transactions");
        blocks[0].header.merkle_root = root;
        while blocks[0].header.validate_pow(blocks[0].header.target()).is_err() {
            blocks[0].header.nonce += 1;
        }
    });
    let (result, read) = step(&backend, Vec::new(), 0).await;
    assert!(result.is_err() && read.is_empty());
    let birthday = Checkpoint::genesis(Network::Signet);
    let error = check(&*backend, Network::Signet, birthday).await.expect_err("regtest").to_string();
    assert!(error.contains("not on signet"), "{error}");
}

#[tokio::test]
async fn a_birthday_begins_a_period_and_is_a_day_old() {
    for (tip, height) in [(1, 0), (2_159, 0), (2_160, 2_016), (4_100, 2_016)] {
        let backend = Backend::mined(tip);
        let found = super::super::birthday(&backend, Network::Regtest).await.expect("there");
        assert_eq!(found.height, height, "at tip {tip}");
        assert!(found.is_sound(Network::Regtest));
    }
}

#[tokio::test]
async fn a_block_that_is_easier_than_the_chain_is_refused_and_the_others_are_not_handed_over() {
    let backend = Arc::new(Backend::mined(20));
    backend.with(|(blocks, _)| {
        let last = blocks.last_mut().expect("a block");
        last.header.bits = CompactTarget::from_consensus(0x207f_fffe);
        while last.header.validate_pow(last.header.target()).is_err() {
            last.header.nonce += 1;
        }
    });
    let (result, read) = step(&backend, Vec::new(), 0).await;
    let error = result.expect_err("another target").to_string();
    assert!(error.contains("height 20 has the wrong target"), "{error}");
    assert_eq!(read.len(), 16, "those of an earlier batch are");
}

#[test]
fn the_headers_to_check_others_with_are_the_last_ones_and_the_start_of_a_period() {
    assert_eq!(checks::wanted(0, 5, 9), [0..=5]);
    assert_eq!(checks::wanted(2_016, 2_020, 2_030), [2_016..=2_020]);
    assert_eq!(checks::wanted(0, 2_010, 2_020), [0..=0, 2_000..=2_010]);
    assert_eq!(checks::wanted(2_016, 4_030, 4_040), [2_016..=2_016, 4_020..=4_030]);
    assert_eq!(checks::wanted(2_016, 2_016, 2_032), [2_016..=2_016]);
}

#[tokio::test]
async fn a_branch_that_took_no_more_work_takes_the_place_of_nothing() {
    let backend = Arc::new(Backend::mined(50));
    let read = blocks(&backend);
    for (blocks, taken) in [(9, false), (10, false), (11, true)] {
        let backend = Arc::new(Backend::mined(50));
        backend.extend(40, blocks, 300);
        let (result, kept) = step(&backend, read.clone(), 0).await;
        assert_eq!(result.is_ok(), taken, "{blocks} blocks for 10: {result:?}");
        if !taken {
            let error = result.expect_err("less work").to_string();
            assert!(error.contains("after block 40"), "{error}");
            assert_eq!(kept, read);
        }
    }
}
