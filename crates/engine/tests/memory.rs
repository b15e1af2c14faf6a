//! The memory that is planned, that is taken, and that is really there afterwards.

mod common;

use common::{Heard, backends, config, greedy, programs, rwkv, transformer};
use exotherm_engine::{Engine, EngineConfig, EngineError, MemoryPlan};
use exotherm_kernels::cpu::CpuBackend;
use exotherm_kernels::{BLOCK, KvType};

#[test]
fn the_memory_plan_is_what_the_backend_takes() {
    for program in programs() {
        for backend in backends() {
            for kv_type in [KvType::F32, KvType::F16] {
                let config = EngineConfig { kv_type, logit_rows: 5, snapshots: 7, ..config(50, 3, 20) };
                let plan = MemoryPlan::new(&program, &*backend, &config);
                let mut engine = Engine::new(&program, &*backend, config).expect("it is small");
                let taken = engine.executor().memory();
                let states = plan.recurrent + plan.snapshots;
                assert_eq!((plan.weights, plan.kv), (taken.weights, taken.kv));
                assert_eq!((states, plan.scratch), (taken.recurrent, taken.scratch));
                assert_eq!(plan.recurrent * 7, plan.snapshots * 3, "a state is a state");
                let parts = [plan.weights, plan.kv, plan.recurrent, plan.snapshots, plan.scratch];
                assert_eq!(plan.total(), parts.iter().sum());
            }
        }
    }
    let plan = MemoryPlan::new(&transformer(), &CpuBackend::new(2), &config(64, 1, 8));
    // Two layers, two heads of six in f16: keys as they are, values in whole vectors of sixteen.
    assert_eq!(plan.kv_bytes_per_token, 2 * 2 * (6 + 16) * 2);
    assert_eq!(plan.kv, 64 * plan.kv_bytes_per_token);
    assert!(plan.to_string().contains("  4 blocks, 64 tokens, 176 bytes per token\n"), "{plan}");
    let plan = MemoryPlan::new(&rwkv(), &CpuBackend::new(2), &config(64, 1, 8));
    assert!(plan.to_string().contains("  4 states\n") && !plan.to_string().contains("blocks"), "{plan}");
}

#[test]
fn a_budget_is_used_up_and_not_passed() {
    for program in programs() {
        for backend in backends() {
            let asked = EngineConfig { snapshots: 6, ..config(100, 4, 16) };
            let has_kv = !program.state().kv.is_empty();
            let is_recurrent = !program.state().recurrent.is_empty();
            let least = match asked.clone().within(1, &program, &*backend) {
                Err(EngineError::Budget { budget: 1, ctx: 100, max_seqs: 4, least, beside: 0 }) => least,
                other => panic!("{other:?}"),
            };
            for more in [0, 1, 1000, 10_000, 100_000] {
                let budget = least.total() + more;
                let config = asked.clone().within(budget, &program, &*backend).expect("there is room");
                let plan = MemoryPlan::new(&program, &*backend, &config);
                assert!(plan.total() <= budget);
                if has_kv {
                    let blocks = config.blocks.map(|blocks| blocks + 1);
                    assert!(config.blocks >= Some(100usize.div_ceil(BLOCK)));
                    let larger = EngineConfig { blocks, ..config.clone() };
                    assert!(MemoryPlan::new(&program, &*backend, &larger).total() > budget);
                }
                if is_recurrent && config.snapshots < 6 {
                    let least = Some(100usize.div_ceil(BLOCK));
                    let snapshots = config.snapshots + 1;
                    let larger = EngineConfig { snapshots, blocks: least, ..config.clone() };
                    assert!(MemoryPlan::new(&program, &*backend, &larger).total() > budget);
                }
                let mut engine = Engine::new(&program, &*backend, config).expect("it fits");
                let mut heard = Heard::default();
                let id = engine.submit(greedy(&[1; 90], 10)).expect("a full context fits");
                heard.finish(&mut engine);
                assert_eq!(heard.tokens(id).len(), 10);
            }
            let refused = asked.within(least.total() - 1, &program, &*backend);
            let message = refused.expect_err("it does not fit").to_string();
            assert!(message.contains("a smaller --ctx"), "{message}");
        }
    }
}

#[test]
fn serving_has_room_for_sixteen() {
    let config = EngineConfig::serving(2048, EngineConfig::SERVING_SEQS);
    assert!(config.max_seqs >= 16 && config.queue >= 64 && config.ctx == 2048);
    let plan = MemoryPlan::new(&rwkv(), &CpuBackend::new(2), &config);
    assert!(plan.snapshots > 0 && plan.kv == 0);
    assert_eq!(plan.snapshots / config.snapshots, plan.recurrent / config.max_seqs);
}
