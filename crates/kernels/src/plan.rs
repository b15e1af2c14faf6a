//! Which activations share memory: a liveness pass over the program, once, when it is recorded.

use crate::ops::Op;
use crate::program::{Buf, BufferSpec, Rows};

/// Every buffer's slot and the slots' widths.
pub(crate) struct Plan {
    slot_of: Vec<usize>,
    slots: Vec<Slot>,
}

pub(crate) struct Slot {
    pub width: usize,
    pub rows: Rows,
}

struct Life {
    first: usize,
    last: usize,
}

impl Plan {
    pub fn new(ops: &[Op], buffers: &[BufferSpec], logits: Buf) -> Plan {
        let lives = lives(ops, buffers.len(), logits);
        let mut order: Vec<usize> = (0..buffers.len()).filter(|&b| lives[b].is_some()).collect();
        order.sort_by_key(|&b| lives[b].as_ref().map(|life| life.first));
        let mut plan = Plan { slot_of: vec![usize::MAX; buffers.len()], slots: Vec::new() };
        let mut busy_until: Vec<usize> = Vec::new();
        for b in order {
            let (spec, life) = (&buffers[b], lives[b].as_ref().expect("only live buffers are in order"));
            let free = |s: &usize| busy_until[*s] < life.first && plan.slots[*s].rows == spec.rows;
            // The free slot whose width changes least, so that wide slots stay for wide buffers.
            let best =
                (0..plan.slots.len()).filter(free).min_by_key(|&s| plan.slots[s].width.abs_diff(spec.width));
            let slot = best.unwrap_or_else(|| {
                plan.slots.push(Slot { width: 0, rows: spec.rows });
                busy_until.push(0);
                plan.slots.len() - 1
            });
            plan.slots[slot].width = plan.slots[slot].width.max(spec.width);
            busy_until[slot] = life.last;
            plan.slot_of[b] = slot;
        }
        plan
    }

    /// The slot of a buffer; `None` for one that no op touches.
    pub fn slot_of(&self, buf: Buf) -> Option<usize> {
        Some(self.slot_of[buf.0 as usize]).filter(|&s| s != usize::MAX)
    }

    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn widths(&self) -> (usize, usize) {
        let sum = |rows| self.slots.iter().filter(|s| s.rows == rows).map(|s| s.width).sum();
        (sum(Rows::Batch), sum(Rows::Logits))
    }
}

fn lives(ops: &[Op], n: usize, logits: Buf) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = (0..n).map(|_| None).collect();
    for (i, op) in ops.iter().enumerate() {
        op.for_each_buffer(&mut |buf| {
            let life = lives[buf.0 as usize].get_or_insert(Life { first: i, last: i });
            life.last = i;
        });
    }
    // The logits are read after the last op, and have a place even in a program that makes none.
    lives[logits.0 as usize].get_or_insert(Life { first: ops.len(), last: ops.len() }).last = ops.len();
    lives
}
