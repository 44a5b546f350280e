// cap * tanh(x / cap). The exponent is never positive, so nothing overflows. Near zero, where 1 - exp has few digits, tanh is its series.
fn soft_cap(x: vec4<f32>, cap: f32) -> vec4<f32> {
    let u = x / cap;
    let e = exp(-2.0 * abs(u));
    let u2 = u * u;
    let series = u * (1.0 - u2 * (1.0 / 3.0 - u2 * (2.0 / 15.0)));
    return cap * select(sign(u) * (1.0 - e) / (1.0 + e), series, abs(u) < vec4<f32>(0.1));
}
