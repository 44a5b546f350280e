//! gptq-quant
