//! Embeddings are the mean of what the tokens come to, however they were run.

mod common;

use std::sync::Arc;

use common::{Heard, VOCAB, backends, config, engine_on, greedy, programs, transformer};
use exotherm_engine::{Embedding, Engine, EngineConfig, Evaluator, Request};
use exotherm_kernels::reference::ReferenceBackend;
use exotherm_kernels::{Op, Program, ProgramBuilder};
use exotherm_tensor::Tensor;

fn embed(engine: &mut Engine, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut made = Vec::new();
    for prompt in prompts {
        let embedding: Arc<Embedding> = Arc::default();
        made.push(embedding.clone());
        let request = Request { embedding: Some(embedding), ..greedy(prompt, 0) };
        engine.submit(request).expect("it fits");
    }
    Heard::default().finish(engine);
    made.iter().map(|embedding| embedding.values().expect("it was made").to_vec()).collect()
}

const TEXT: &[u32] = &[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4];

#[test]
fn an_embedding_is_the_same_alone_and_among_others() {
    for program in programs() {
        for backend in backends() {
            let mut alone = engine_on(&*backend, &program, 64, 1, 64);
            let expected = embed(&mut alone, &[TEXT]);
            assert!((expected[0].iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
            for chunk in [1, 7, 19] {
                let mut busy = engine_on(&*backend, &program, 64, 3, chunk);
                // Its blocks are known then, and others run beside it.
                let others: [&[u32]; 4] = [TEXT, &[7, 7], TEXT, &TEXT[..5]];
                busy.submit(greedy(TEXT, 5)).expect("it fits");
                let made = embed(&mut busy, &others);
                assert_eq!((&made[0], &made[2]), (&expected[0], &expected[0]), "chunk {chunk}");
                assert_ne!(made[0], made[3]);
            }
        }
    }
}

#[test]
fn who_has_to_make_room_gets_the_same_embedding() {
    let program = transformer();
    let config = EngineConfig { blocks: Some(5), ..config(64, 3, 5) };
    let mut engine = Engine::new(&program, &ReferenceBackend, config).expect("it is small");
    let expected = embed(&mut engine, &[TEXT]);
    for _ in 0..2 {
        engine.submit(greedy(&[1, 2, 3], 40)).expect("it fits");
    }
    assert_eq!(embed(&mut engine, &[TEXT, TEXT]), [expected[0].clone(), expected[0].clone()]);
}

/// The transformer with a head that gives the hidden states themselves.
fn transparent() -> (Program, usize) {
    let program = transformer();
    let Some(Op::Head(head)) = program.ops().last() else { panic!("the head is the last") };
    let width = program.buffer(head.x).width;
    let mut identity = vec![0.0; VOCAB * width];
    (0..width).for_each(|i| identity[i * width + i] = 1.0);
    let mut builder = ProgramBuilder::reopen(&program);
    let tensor = Tensor::from_f32(&[VOCAB, width], &identity).expect("it fits");
    let weight = builder.matrix("identity", vec![tensor]);
    if let Some(Op::Head(head)) = builder.ops_mut().last_mut() {
        head.weight = weight;
    }
    (builder.finish(program.logits(), VOCAB), width)
}

#[test]
fn an_embedding_is_the_mean_of_the_normed_hidden_states() {
    let (program, width) = transparent();
    let mut evaluator = Evaluator::new(&program, &ReferenceBackend, &config(64, 1, 64)).expect("it is small");
    let mut sum = vec![0.0; width];
    let positions: Vec<usize> = (0..TEXT.len()).collect();
    let add = |_: usize, row: &[f32]| sum.iter_mut().zip(row).for_each(|(sum, &v)| *sum += v);
    evaluator.logits(TEXT, &positions, add).expect("it fits");
    let length = sum.iter().map(|v| v * v).sum::<f32>().sqrt();
    let made = embed(&mut engine_on(&ReferenceBackend, &program, 64, 1, 8), &[TEXT]);
    for (made, sum) in made[0].iter().zip(&sum) {
        assert!((made - sum / length).abs() < 1e-5, "{made} {}", sum / length);
    }
}
