//! `glu` in plain loops.

use model_format::decoder_config::Activation;

/// `gate_up`: [rows, 2 * inner]. `y`: [rows, inner].
pub fn glu(gate_up: &[f32], activation: Activation, inner: usize, y: &mut [f32]) {
    for (gate_up, y) in gate_up.chunks_exact(2 * inner).zip(y.chunks_exact_mut(inner)) {
        for i in 0..inner {
            let gate = gate_up[i];
            let activated = match activation {
                Activation::Silu => gate / (1.0 + (-gate).exp()),
                Activation::GeluTanh => {
                    let inner = (2.0 / std::f32::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
                    0.5 * gate * (1.0 + inner.tanh())
                }
            };
            y[i] = activated * gate_up[inner + i];
        }
    }
}
