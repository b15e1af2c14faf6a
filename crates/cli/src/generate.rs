//! One answer: from a prompt's tokens to text as it comes.

use std::time::Instant;

use anyhow::{Result, bail};
use exotherm_engine::{Engine, Event, FinishReason, Request, RequestStats};
use exotherm_tokenizer::{StopMatcher, Stream, Tokenizer};

use crate::interrupt::Interrupt;

/// Why an answer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The model ended it.
    End,
    /// A stop string came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    Interrupted,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::End => "end",
            Reason::Stop => "stop",
            Reason::Length => "length",
            Reason::Interrupted => "interrupted",
        }
    }
}

pub struct Answer {
    pub text: String,
    pub tokens: Vec<u32>,
    pub reason: Reason,
    pub stats: RequestStats,
    pub first_token: Option<Instant>,
}

/// What watches an answer while it is made.
pub struct Watcher<'a> {
    pub tokenizer: &'a Tokenizer,
    /// Whether the answer goes on with the prompt's text instead of beginning one of its own.
    pub continues: bool,
    pub stops: &'a [String],
    pub interrupt: &'a Interrupt,
    /// Gets the text piece by piece, none of it empty.
    pub show: &'a mut dyn FnMut(&str) -> Result<()>,
}

/// Runs a request to its end.
pub fn answer(engine: &mut Engine, request: Request, watcher: &mut Watcher) -> Result<Answer> {
    let before = if watcher.continues { &request.prompt[..] } else { &[] };
    let stream = Stream::after(before, watcher.tokenizer, false);
    let id = engine.submit(request)?;
    let mut running = Running {
        stream,
        matcher: StopMatcher::new(watcher.stops.iter().cloned()),
        answer: Answer {
            text: String::new(),
            tokens: Vec::new(),
            reason: Reason::End,
            stats: RequestStats::default(),
            first_token: None,
        },
        finished: None,
    };
    let watched = watcher.interrupt.watch();
    while running.finished.is_none() {
        if watcher.interrupt.pressed() || running.matcher.stopped() {
            engine.cancel(id);
        }
        // A step may still tell of an earlier request that failed.
        let is_ours = |event: &&Event| matches!(event, Event::Token { id: of, .. } | Event::Finished { id: of, .. } if *of == id);
        for event in engine.step()?.iter().filter(is_ours) {
            running.take(event, watcher.show)?;
        }
    }
    drop(watched);
    running.end(watcher.show)
}

struct Running<'a> {
    stream: Stream<&'a Tokenizer>,
    matcher: StopMatcher,
    answer: Answer,
    finished: Option<FinishReason>,
}

impl Running<'_> {
    fn take(&mut self, event: &Event, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        match *event {
            Event::Token { token, .. } => {
                self.answer.first_token.get_or_insert_with(Instant::now);
                self.answer.tokens.push(token);
                let text = self.stream.push(token)?;
                let text = self.matcher.push(&text);
                self.show(&text, show)
            }
            // Nobody asks for it here.
            Event::Prompt { .. } => Ok(()),
            Event::Finished { fault: Some(ref fault), .. } => bail!("{fault}"),
            Event::Finished { reason, stats, .. } => {
                self.finished = Some(reason);
                self.answer.stats = stats;
                Ok(())
            }
        }
    }

    fn show(&mut self, text: &str, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        self.answer.text.push_str(text);
        if text.is_empty() { Ok(()) } else { show(text) }
    }

    /// What was held back in case more came.
    fn end(mut self, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<Answer> {
        let rest = self.stream.finish();
        let rest = self.matcher.push(&rest) + &self.matcher.finish();
        self.show(&rest, show)?;
        self.answer.reason = match self.finished {
            _ if self.matcher.stopped() => Reason::Stop,
            Some(FinishReason::Length) => Reason::Length,
            Some(FinishReason::Cancelled | FinishReason::Deadline | FinishReason::Failed) => {
                Reason::Interrupted
            }
            Some(FinishReason::Stop(_)) | None => Reason::End,
        };
        Ok(self.answer)
    }
}
