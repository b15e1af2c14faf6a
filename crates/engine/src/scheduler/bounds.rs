//! What can never be done as asked, known before anything is queued.

use exotherm_kernels::{BLOCK, Limits, Program};

use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::request::Request;

/// The highest level of priority and, negative, the lowest: nobody is let in before one that came twice so many levels'
/// worth of steps (`AGEING_STEPS` each) earlier.
const MOST_PRIORITY: i32 = 100;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub ctx: usize,
    pub vocab: usize,
    /// Requests that may run at a time, and that may wait beside them.
    places: usize,
    queue: usize,
    /// Blocks of the cache, where there is one.
    blocks: Option<usize>,
}

impl Bounds {
    pub fn new(program: &Program, config: &EngineConfig, limits: &Limits) -> Bounds {
        Bounds {
            ctx: config.ctx,
            vocab: program.vocab(),
            places: config.max_seqs,
            queue: config.queue,
            blocks: (!program.state().kv.is_empty()).then_some(limits.blocks),
        }
    }

    /// Refuses what could not be done if nothing else were.
    pub fn check(&self, request: &Request) -> Result<(), EngineError> {
        let (n, most) = (request.n, self.most_open());
        if !(1..=most).contains(&n) {
            return Err(EngineError::Choices { n, most });
        }
        request.check(self.ctx, self.vocab)?;
        let (prompt, max_tokens) = (request.prompt.len(), request.max_tokens);
        let need = request.most_positions().div_ceil(BLOCK);
        if let Some(blocks) = self.blocks.filter(|&blocks| need > blocks) {
            return Err(EngineError::TooManyBlocks { prompt, max_tokens, need, blocks });
        }
        if request.priority.unsigned_abs() > MOST_PRIORITY as u32 {
            return Err(EngineError::Priority { priority: request.priority, most: MOST_PRIORITY });
        }
        Ok(())
    }

    /// Refuses more requests than there is room for beside these.
    pub fn check_room(&self, running: usize, waiting: usize, more: usize) -> Result<(), EngineError> {
        if (running + waiting).saturating_add(more) > self.most_open() {
            return Err(EngineError::QueueFull { running, waiting, queue: self.queue });
        }
        Ok(())
    }

    fn most_open(&self) -> usize {
        self.places.saturating_add(self.queue)
    }
}
