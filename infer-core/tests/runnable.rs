//! Architectures made of the parts that the forward pass has run as they are; those with other parts are refused, with the
//! part named, before a weight is read.

mod common;

use common::Golden;
use infer_core::{
    Decoder, Error, KvCache,
    model::{Sequence, load_checkpoint},
    ops::{Ops, candle::CandleOps},
};
use model_format::{Checkpoint, DecoderConfig, SafetensorsCheckpoint};

fn load(golden: &Golden, config: impl Fn(&str) -> String) -> Result<Decoder<CandleOps>, Error> {
    let checkpoint = SafetensorsCheckpoint::open(&golden.folder("hf")).unwrap();
    let config = DecoderConfig::from_hf(&config(checkpoint.config_json())).unwrap();
    let mut ops = CandleOps::default();
    let parts = load_checkpoint(&mut ops, &config, &checkpoint, None, &mut ())?;
    Decoder::new(&mut ops, &config, parts, 64)
}

#[test]
fn phi3_gives_the_logits_of_transformers() {
    let golden = Golden::open("arch/phi3");
    let decoder = load(&golden, str::to_owned).unwrap();
    let file = golden.tensors("logits.safetensors");
    for prompt in 0..2 {
        let ids = file.ids(&format!("ids_{prompt}"));
        let mut ops = CandleOps::default();
        let mut cache = KvCache::new(&mut ops, decoder.config(), ids.len()).unwrap();
        let hidden = decoder.hidden(&mut ops, &mut [Sequence { tokens: &ids, cache: &mut cache }]);
        let logits = decoder.head(&mut ops, &hidden);
        let found = infer_core::block_on(ops.read(&logits)).unwrap();
        let difference = common::max_abs_difference(&found, &file.f32(&format!("logits_{prompt}")));
        assert!(difference <= 1e-3, "logits_{prompt} differ by {difference}");
    }
}

#[test]
fn what_cannot_be_run_is_refused_with_its_part() {
    let check = |arch: &str, part: &str| {
        let error = load(&Golden::open(&format!("arch/{arch}")), str::to_owned).err().expect(arch);
        assert!(matches!(error, Error::NotRunnable { .. }), "{arch}: {error}");
        assert!(error.to_string().contains(part) && error.hint().is_some(), "{arch}: {error}");
    };
    check("mistral", "a sliding window");
    check("qwen2", "a bias in its attention");
    check("qwen3", "norms of its queries and keys");
    check("phi3-longrope", "frequencies that depend on the length");
    check("gemma2", "norms after attention and feed-forward");
    check("gemma3", "norms of its queries and keys");
    // Mistral's later versions have no window.
    let golden = Golden::open("arch/mistral");
    assert!(load(&golden, |json| json.replace("\"sliding_window\": 16", "\"sliding_window\": null")).is_ok());
}
