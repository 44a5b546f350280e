//! gptq-quant
fn main() {}
