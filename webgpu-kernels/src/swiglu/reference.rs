//! The same in plain loops.

/// `gate_up`: [rows, 2 * inner]. `y`: [rows, inner].
pub fn swiglu(gate_up: &[f32], inner: usize, y: &mut [f32]) {
    for (gate_up, y) in gate_up.chunks_exact(2 * inner).zip(y.chunks_exact_mut(inner)) {
        for i in 0..inner {
            let gate = gate_up[i];
            y[i] = gate / (1.0 + (-gate).exp()) * gate_up[inner + i];
        }
    }
}
