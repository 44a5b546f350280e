// Stages 0 to 3 are products of a matrix and a row. This text is expanded once for each stage $t. Its flags: RESIDUAL$t (stages 0 and 2)
// adds a residual, NORMED$t (1 and 3) norms the inputs, TURNED$t (3) needs the row's position, FROM_X$t (the first stage) reads `x`, and the
// others read `links`.
//
// A workgroup of PARTS clusters computes `passes` tiles of ROWS$t outputs each. A lane has STEPS$t blocks of each row. It loads the
// weights of the next tile before it multiplies those of the current one. It converts its inputs to fixed point once.
//
// The file of stage $t has the functions that are called here:
//   row$t           the matrix row of an output
//   norm_weights$t  four weights of the norm, with NORMED$t
//   residual$t      the value that is added to an output, with RESIDUAL$t
//   finish$t        publishes or writes an output

// ROWS$t partial sums, at most 8, and a partial sum of squares.
const COLUMNS: u32 = 9u;
var<workgroup> partial_sums: array<f32, 2u * PARTS * COLUMNS>;                // [parity of the tile, PARTS, COLUMNS]

// A block of inputs in fixed point, see fixed_point.wgsl: of values 0 to 7 and of values 8 to 15. `start` subtracts MAX_INT from each code.
struct FixedInputs { unit: f32, left: Planes, right: Planes, start: vec2<i32> }

fn fixed_inputs(inputs: Inputs) -> FixedInputs {
    var largest = vec4<f32>(0.0);
#for i in 0..4
    largest = max(largest, abs(inputs.quad$i));
#endfor
    let unit = unit_of(largest);
    let left = planes_of(inputs.quad0, inputs.quad1, 1.0 / unit);
    let right = planes_of(inputs.quad2, inputs.quad3, 1.0 / unit);
    let start = vec2<i32>(FLOAT_BITS) - i32(MAX_INT) * (plane_sums(left) + plane_sums(right));
    return FixedInputs(unit, left, right, start);
}

// The dot product of a block of weights and its inputs.
fn block_product(codes: Words, scale: f32, inputs: FixedInputs) -> f32 {
    let products = inputs.start + plane_products(bytes_of(codes.x), inputs.left)
        + plane_products(bytes_of(codes.y), inputs.right);
    return scale * inputs.unit * joined(products);
}

#for t in FIRST..STAGES
fn product$t(group: u32, invocation: Invocation) {
    let lane = invocation.lane;
    var tile = group * params.passes$t;
    let end = tile + params.passes$t;
#for s in 0..STEPS$t
    let wanted$s = $su * WORKGROUP + lane;
#ifdef EXACT$t
    let block$s = wanted$s;
#else
    // A lane beyond the last block loads the last one and multiplies it by zero.
    let block$s = min(wanted$s, params.blocks$t - 1u);
#endif
    let is_odd$s = (block$s & 2u) != 0u;
#endfor
#for r in 0..ROWS$t
    let first$r = row$t(tile, $ru) * params.blocks$t;
#for s in 0..STEPS$t
    var codes$s_$r = q_weight$t[first$r + block$s];
    var scales$s_$r = q_scale$t[(first$r + block$s) >> 2u];
#endfor
#endfor

#ifdef TURNED$t
    let position = position_of(0u);
#endif
#ifdef FROM_X$t
    reset_stale(group * WORKGROUP + lane, params.groups$t * WORKGROUP);
#endif
#ifdef NORMED$t
#for s in 0..STEPS$t
#for i in 0..4
    let norm$s_$i = norm_weights$t(4u * block$s + $iu);
#endfor
#endfor
#endif
#ifdef FROM_X$t
#for s in 0..STEPS$t
    var inputs$s: Inputs;
#for i in 0..4
    inputs$s.quad$i = x[4u * block$s + $iu];
#endfor
#endfor
#else
    // Poll one word in sixteen first. When it is published, most others are too.
    poll(input$t() + 15u * params.blocks$t + block0);
#for s in 0..STEPS$t
    var inputs$s = poll_inputs(input$t(), params.blocks$t, block$s);
#endfor
#endif

    var square = 0.0;
#for s in 0..STEPS$t
#for i in 0..4
#ifndef EXACT$t
    inputs$s.quad$i = select(vec4<f32>(0.0), inputs$s.quad$i, wanted$s == block$s);
#endif
#ifdef NORMED$t
    square += dot(inputs$s.quad$i, inputs$s.quad$i);
    inputs$s.quad$i *= norm$s_$i;
#endif
#endfor
    let fixed$s = fixed_inputs(inputs$s);
#endfor
#ifdef NORMED$t
    square = cluster_sum(square);
#endif

    for (; tile < end; tile++) {
#ifdef RESIDUAL$t
        let n = tile * ROWS$t + lane;
        let residual = residual$t(min(tile * ROWS$t + min(lane, ROWS$t - 1u), params.rows$t - 1u));
#endif
#for r in 0..ROWS$t
#for s in 0..STEPS$t
        var next_codes$s_$r = codes$s_$r;
        var next_scales$s_$r = scales$s_$r;
#endfor
#endfor
        if (tile + 1u < end) {
#for r in 0..ROWS$t
            {
                let first = row$t(tile + 1u, $ru) * params.blocks$t;
#for s in 0..STEPS$t
                next_codes$s_$r = q_weight$t[first + block$s];
                next_scales$s_$r = q_scale$t[(first + block$s) >> 2u];
#endfor
            }
#endfor
        }

#for r in 0..ROWS$t
        var sum$r = 0.0;
#for s in 0..STEPS$t
        {
            let pair = unpack2x16float(scales$s_$r);
            sum$r += block_product(codes$s_$r, select(pair.x, pair.y, is_odd$s), fixed$s);
        }
#endfor
#endfor
#for r in 0..ROWS$t
#for s in 0..STEPS$t
        codes$s_$r = next_codes$s_$r;
        scales$s_$r = next_scales$s_$r;
#endfor
#endfor

        // Sums over the lanes of a cluster, then over the clusters.
#ifdef EIGHT$t
        var total = eight_sums(
            vec4<f32>(sum0, sum1, sum2, sum3), vec4<f32>(sum4, sum5, sum6, sum7), invocation.cluster_lane,
        );
#else
        var total = four_sums(vec4<f32>(sum0, sum1, sum2, sum3), invocation.cluster_lane);
#endif
        let output = invocation.cluster_lane % ROWS$t;
        // Two sides: other clusters may still read the sums of the tile before.
        let side = tile % 2u * (PARTS * COLUMNS);
        if (invocation.cluster_lane < ROWS$t) {
            partial_sums[side + invocation.cluster * COLUMNS + output] = total;
        }
#ifdef NORMED$t
        if (invocation.cluster_lane == 0u) {
            partial_sums[side + invocation.cluster * COLUMNS + COLUMNS - 1u] = square;
        }
#endif
        workgroupBarrier();
        total = 0.0;
#for i in 0..PARTS
        total += partial_sums[side + $iu * COLUMNS + output];
#endfor

#ifdef RESIDUAL$t
        if (lane < ROWS$t && n < params.rows$t) {
            let value = residual + total;
            finish$t(n, value);
#ifdef SQUARES$t
            square += value * value;
#endif
        }
#else
        var all_squares = 0.0;
#for i in 0..PARTS
        all_squares += partial_sums[side + $iu * COLUMNS + COLUMNS - 1u];
#endfor
        total *= inverseSqrt(all_squares / f32(16u * params.blocks$t) + params.eps);
        // Rows come in pairs, and neighboring lanes have a pair.
        let pair = tile * (ROWS$t / 2u) + lane / 2u;
        let is_output = lane < ROWS$t && pair < params.rows$t / 2u;
        let other = subgroupShuffleXor(total, 1u);
#ifdef TURNED$t
        finish$t(position, pair, lane % 2u == 1u, is_output, total, other);
#else
        finish$t(pair, lane % 2u == 1u, is_output, total, other);
#endif
#endif
    }
#ifdef SQUARES$t
    square = cluster_sum(square);
    if (lane == 0u) {
        squares[group] = square;
    }
#endif
}

#endfor
