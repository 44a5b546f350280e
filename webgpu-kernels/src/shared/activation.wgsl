// What a gate goes through: silu(v) = v * sigmoid(v), or with GELU the formula of GELU with tanh. As
// (1 + tanh(u)) / 2 = sigmoid(2u), that is a sigmoid too.

fn activation(v: f32) -> f32 {
#ifdef GELU
    let u = 1.5957691216 * (v + 0.044715 * v * v * v); // 2 * sqrt(2 / pi)
#else
    let u = v;
#endif
    // exp(88) is the last finite one, and WGSL promises nothing beyond.
    return v / (1.0 + exp(min(-u, 88.0)));
}
