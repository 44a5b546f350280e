//! The examples answer on a tiny model.

#![allow(clippy::duplicate_mod, reason = "each example declares the module that it shares with the others")]

mod common;
#[path = "common/tiny_model.rs"]
mod tiny_model;

#[path = "../examples/batch.rs"]
#[allow(dead_code, reason = "a test does not call `main`")]
mod batch;
#[path = "../examples/chat.rs"]
#[allow(dead_code, reason = "a test does not call `main`")]
mod chat;
#[path = "../examples/custom_sampler.rs"]
#[allow(dead_code, reason = "a test does not call `main`")]
mod custom_sampler;

use infer_core::{Device, Engine, block_on};

const QUESTIONS: [&str; 3] = ["Hi", "Name a color.", "And a longer question, please?"];

fn engine(folder: &tempfile::TempDir) -> Engine {
    tiny_model::engine(folder.path(), Device::Cpu(Default::default()), 256)
}

fn chat_answer(engine: &Engine, question: &str) -> String {
    let mut out = Vec::new();
    block_on(chat::answer(engine, question, tiny_model::greedy(12), &mut out)).unwrap();
    String::from_utf8(out).unwrap().trim_end_matches('\n').to_string()
}

#[test]
fn a_batch_gives_the_answers_of_single_chats() {
    let folder = tiny_model::model();
    let questions = QUESTIONS.map(str::to_string);
    let batch = block_on(batch::answers(Device::Cpu(Default::default()), folder.path(), &questions, 12)).unwrap();
    let engine = engine(&folder);
    for (question, answer) in QUESTIONS.iter().zip(&batch) {
        engine.reset();
        assert_eq!(*answer, chat_answer(&engine, question), "{question}");
        assert!(!answer.is_empty(), "{question}");
    }
}

#[test]
fn the_custom_sampler_writes_an_answer() {
    let folder = tiny_model::model();
    let mut answers = [Vec::new(), Vec::new()];
    for out in &mut answers {
        block_on(custom_sampler::answer(&engine(&folder), QUESTIONS[0], 12, out)).unwrap();
    }
    assert!(answers[0].len() > 4);
    assert_eq!(answers[0], answers[1], "the seed is fixed");
}
