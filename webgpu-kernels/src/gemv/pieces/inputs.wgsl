// Declarations: the matrix `q_weight`, `q_scale`, the rows of `x`, and the output `y`. The shader declares `params`.
#import invocation
#import unpack
#ifdef INTEGER
#import fixed_point
#endif

@group(0) @binding(1) var<storage, read> q_weight: array<Words>;       // [rows, blocks, ..], see unpack
@group(0) @binding(2) var<storage, read> q_scale: array<u32>;          // [rows, groups], two f16 to a word
#ifdef RAGGED
@group(0) @binding(3) var<storage, read> x: array<f32>;                // [BATCH, cols]
#else
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;          // [BATCH, cols / 4]
#endif
@group(0) @binding(4) var<storage, read_write> y: array<f32>;          // see the shader
#import load_x

#ifdef SHARED_X
var<workgroup> x_tile: array<vec4<f32>, QUADS * X_BLOCKS>;             // [QUADS, X_BLOCKS], spread
#endif

// Quad i of block `at` of x[m]. Zero beyond the last column.
fn x_quad(m: u32, at: u32, i: u32) -> vec4<f32> {
#ifdef EXACT
    return x[m * (params.cols / 4u) + at * QUADS + i];
#else
    return load_x(m, at * QUADS + i);
#endif
}

// The same quad, in the order of `raw4`.
fn x_of(m: u32, at: u32, i: u32) -> vec4<f32> {
#ifdef SHARED_X
#ifdef EXACT
    return x_tile[i * X_BLOCKS + at];
#else
    return select(vec4<f32>(0.0), x_tile[i * X_BLOCKS + min(at, X_BLOCKS - 1u)], at < X_BLOCKS);
#endif
#else
    return spread(x_quad(m, at, i));
#endif
}
