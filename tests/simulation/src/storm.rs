//! Faults of machines, disks, clocks and the network, as the seed's plan has them.

use crate::{disk::DiskFault, event::Event, faults::Fault, node::SimNode, world::World};
use quorate::{Epoch, NodeId, Round};
use std::time::Duration;

impl World {
    pub(crate) fn next_machine_fault(&mut self) {
        if self.weather.machine_faults_ms > 0 {
            let mean = self.weather.machine_faults_ms * 1_000;
            let wait = self.dice.between(mean / 4, mean * 7 / 4);
            self.schedule(wait, Event::MachineFault);
        }
    }

    pub(crate) fn next_network_fault(&mut self) {
        if self.weather.network_faults_ms > 0 {
            let mean = self.weather.network_faults_ms * 1_000;
            let wait = self.dice.between(mean / 4, mean * 7 / 4);
            self.schedule(wait, Event::NetworkFault);
        }
    }

    fn some_node(&mut self) -> NodeId {
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        self.dice.pick(&nodes).copied().unwrap_or(NodeId(1))
    }

    pub(crate) fn machine_fault(&mut self) {
        if !self.stormy {
            return;
        }
        self.next_machine_fault();
        let id = self.some_node();
        match self.dice.below(13) {
            0..=2 => self.crash(id),
            3 => self.crash_while_writing(id),
            4 => {
                self.counters.add(Fault::Pause);
                let wait = self.dice.between(100_000, 8_000_000);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.paused_until = self.now + wait;
                }
            }
            5 => self.set_back(id),
            6 => self.plan_disk_fault(id, DiskFault { failing_sync: Some(0), ..DiskFault::default() }),
            7 => self.plan_disk_fault(id, DiskFault { full: true, ..DiskFault::default() }),
            8 => {
                self.counters.add(Fault::SlowDisk);
                let wait = self.dice.between(500_000, 5_000_000);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.slow_until = self.now + wait;
                }
            }
            9 => self.clock_jump(id),
            10 => {
                // All at once: a data centre without power.
                for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                    self.crash(id);
                }
            }
            11 => self.lose_share(id),
            _ => self.bother_somebody(),
        }
    }

    fn bother_somebody(&mut self) {
        let evil: Vec<_> =
            self.nodes.iter().filter_map(|(id, node)| Some((*id, node.evil.clone()?))).collect();
        let Some((id, evil)) = self.dice.pick(&evil).cloned() else { return };
        let Some((outpoint, round)) = self.dice.pick(&evil.heard).copied() else { return };
        let ahead = [0, 0, 1, 1_000, u32::MAX];
        let ahead = self.dice.pick(&ahead).copied().unwrap_or(0);
        let cancel = self.dice.pick(&evil.cancellations).cloned();
        self.bother(id, outpoint, Round(round.0.saturating_add(ahead)), cancel);
    }

    fn plan_disk_fault(&mut self, id: NodeId, fault: DiskFault) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.machine.is_some()) {
            node.disk.plan(fault);
        }
    }

    fn clock_jump(&mut self, id: NodeId) {
        self.counters.add(Fault::ClockJump);
        let ahead = self.dice.between(10_000, 20_000_000);
        let back = self.dice.below(2) == 0;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if back {
            node.wall_ms = node.wall_ms.saturating_sub(u64::try_from(ahead.as_millis()).unwrap_or(0));
        } else {
            // A suspended machine finds its monotonic clock far ahead.
            node.clock += ahead;
            node.wall_ms += 2 * u64::try_from(ahead.as_millis()).unwrap_or(0);
            node.timer_at = None;
            let incarnation = node.incarnation;
            self.schedule(Duration::ZERO, Event::Timer { node: id, incarnation });
        }
    }

    /// Power fails; unsynced writes are lost or torn.
    pub(crate) fn crash(&mut self, id: NodeId) {
        let seed = self.dice.number();
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.transition.is_some()) else { return };
        self.counters.add(Fault::Crash);
        let (disk, damage) = node.disk.crash(seed);
        if damage.lost > 0 {
            self.counters.add(Fault::LostWrite);
        }
        if damage.torn > 0 {
            self.counters.add(Fault::TornWrite);
        }
        if self.dice.below(3) == 0 && node.snapshot.is_none() {
            node.snapshot = Some((disk.snapshot(), node.mirror.clone()));
        }
        node.disk = disk;
        let wait = self.dice.between(10_000, 6_000_000);
        self.power_off(id, wait);
    }

    fn power_off(&mut self, id: NodeId, restart_in: Duration) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for owner in node.power_off() {
            let wait = self.dice.between(1_000, 50_000);
            self.schedule(wait, Event::SessionLost { owner });
        }
        self.schedule(restart_in, Event::Start { node: id });
    }

    /// Power will fail in the middle of the node's next write.
    fn crash_while_writing(&mut self, id: NodeId) {
        let operations = u64::try_from(self.dice.below(12)).unwrap_or(0);
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.machine.is_some()) {
            node.doomed = Some(operations);
        }
    }

    /// Power fails in the middle of a write, and perhaps again while the store is read after that.
    pub(crate) fn doom(&mut self, id: NodeId, operations: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        self.counters.add(Fault::CrashWhileWriting);
        node.disk.plan(DiskFault { power_fails_after: Some(operations), ..DiskFault::default() });
        node.write_half();
        self.crash(id);
        if self.dice.below(2) == 0 {
            let after = u64::try_from(self.dice.below(8)).ok();
            if let Some(node) = self.nodes.get(&id) {
                node.disk.plan(DiskFault { power_fails_after: after, ..DiskFault::default() });
            }
        }
    }

    /// The store could not be read at the start, because power failed again.
    pub(crate) fn recovery_failed(&mut self, id: NodeId, error: &str) {
        if !error.contains("power failed") && !error.contains("machine is down") {
            self.oracle.broken("a store survives any crash", format!("node {id}: {error}"));
            return;
        }
        self.counters.add(Fault::CrashInRecovery);
        let seed = self.dice.number();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk = node.disk.crash(seed).0;
        }
        let wait = self.dice.between(10_000, 1_000_000);
        self.power_off(id, wait);
    }

    /// A write failed: the node stops, as the real one does.
    pub(crate) fn write_failed(&mut self, id: NodeId, error: &str) {
        self.counters.add(if error.contains("did not confirm") {
            Fault::FailedSync
        } else {
            Fault::FullDisk
        });
        let seed = self.dice.number();
        if let Some(node) = self.nodes.get_mut(&id) {
            node.disk = node.disk.crash(seed).0;
        }
        let wait = self.dice.between(500_000, 4_000_000);
        self.power_off(id, wait);
    }

    /// The store of a node that counts as faulty is set back to an older copy, or lost.
    fn set_back(&mut self, id: NodeId) {
        let forgetful: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.forgetful).map(|(id, _)| *id).collect();
        let Some(id) = self.dice.pick(&forgetful).copied() else { return self.crash(id) };
        self.crash(id);
        let lose = self.dice.below(4) == 0;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let (content, mirror) = if lose {
            self.counters.add(Fault::LostStore);
            (Vec::new(), crate::oracle::Mirror::new())
        } else if let Some(old) = node.snapshot.clone() {
            self.counters.add(Fault::SnapshotRestore);
            old
        } else {
            node.snapshot = Some((node.disk.snapshot(), node.mirror.clone()));
            return;
        };
        node.created = !content.is_empty();
        node.disk = crate::disk::Disk::new(content);
        node.mirror = mirror;
        let found = crate::oracle::log_sequence(&node.mirror);
        let epoch = node.epoch;
        let honest = self.nodes.values().filter(|other| other.is_trusted() && other.epoch == epoch);
        let seen = honest.map(|other| crate::oracle::known_sequence(&other.mirror, id)).max();
        let amnesiac = seen.is_some_and(|seen| seen > found);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.amnesiac = amnesiac;
        }
    }

    pub(crate) fn network_fault(&mut self) {
        if !self.stormy {
            return;
        }
        self.next_network_fault();
        let nodes: Vec<_> = self.nodes.keys().copied().collect();
        match self.dice.below(7) {
            0 | 1 => {
                // Each node is dropped on one side or the other, swizzled: one by one, and healed in another order
                // later.
                self.counters.add(Fault::Partition);
                let (left, right): (Vec<_>, Vec<_>) = nodes.iter().partition(|_| self.dice.below(2) == 0);
                for a in &left {
                    for b in &right {
                        self.cuts.insert((*a, *b));
                        self.cuts.insert((*b, *a));
                    }
                }
            }
            2 => {
                self.counters.add(Fault::OneWayCut);
                let (from, to) = (self.some_node(), self.some_node());
                self.cuts.insert((from, to));
            }
            3 => {
                let healed: Vec<_> = self.cuts.iter().copied().filter(|_| self.dice.below(2) == 0).collect();
                healed.iter().for_each(|cut| {
                    self.cuts.remove(cut);
                });
            }
            4 => self.cuts.clear(),
            5 => self.bridge_restart(),
            _ => self.reconnect_storm(),
        }
    }

    /// Evidence that honest nodes hold is checked as soon as it may have appeared.
    pub(crate) fn judge_evidence(&mut self, id: NodeId) {
        let federation = self.federation();
        let Some(node) = self.nodes.get(&id).filter(|node| node.is_trusted()) else { return };
        let Some(machine) = &node.machine else { return };
        for evidence in machine.evidence() {
            let accused = self.nodes.get(&evidence.accused());
            let may_cheat = accused.is_some_and(|accused| !SimNode::is_trusted(accused));
            // A node that was replaced may have cheated before.
            let before = evidence.epoch() == Some(Epoch::FIRST);
            let old = before
                && self.succession.as_ref().is_some_and(|one| one.replaced == Some(evidence.accused()));
            self.oracle.evidence(&federation, evidence, may_cheat || old);
        }
    }
}
