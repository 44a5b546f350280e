//! [`Dxc`]: calls Microsoft's HLSL compiler for Direct3D 12, from its Linux library.
//!
//! The interface is COM: an object is a pointer to a table of functions, which begins with `QueryInterface`, `AddRef`
//! and `Release` (dxcapi.h).

use std::{
    ffi::{OsStr, c_void},
    ptr::null_mut,
};

use anyhow::{Context, Result, ensure};
use libloading::{Library, Symbol};

type Object = *mut c_void;
type Code = i32;

#[repr(C)]
struct Guid(u32, u16, u16, [u8; 8]);

const CLSID_COMPILER: Guid = Guid(0x73e2_2d93, 0xe6ce, 0x47f3, [0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0]);
const IID_COMPILER3: Guid = Guid(0x228b_4687, 0x5a6a, 0x4730, [0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54]);
const IID_RESULT: Guid = Guid(0xcedb_484a, 0xd4e9, 0x445a, [0xb9, 0x91, 0xca, 0x21, 0xca, 0x15, 0x7d, 0xc2]);

// Indices in the function tables.
const RELEASE: usize = 2;
const COMPILER3_COMPILE: usize = 3;
const RESULT_STATUS: usize = 3;
const RESULT_ERRORS: usize = 5;
const BLOB_POINTER: usize = 3;
const BLOB_SIZE: usize = 4;

type Create = unsafe extern "C" fn(*const Guid, *const Guid, *mut Object) -> Code;
type Release = unsafe extern "C" fn(Object) -> u32;
type Compile =
    unsafe extern "C" fn(Object, *const Source, *const *const u32, u32, Object, *const Guid, *mut Object) -> Code;
type GetCode = unsafe extern "C" fn(Object, *mut Code) -> Code;
type GetObject = unsafe extern "C" fn(Object, *mut Object) -> Code;
type Pointer = unsafe extern "C" fn(Object) -> *const u8;
type Size = unsafe extern "C" fn(Object) -> usize;

/// `DxcBuffer`.
#[repr(C)]
struct Source {
    text: *const u8,
    bytes: usize,
    encoding: u32,
}
const UTF8: u32 = 65001;

/// A COM object, released on drop.
struct Owned(Object);

impl Owned {
    /// The function at `index` in the object's table.
    ///
    /// # Safety
    ///
    /// `F` must be the type of that function.
    unsafe fn function<F: Copy>(&self, index: usize) -> F {
        // SAFETY: an object begins with a pointer to its table.
        let table = unsafe { *self.0.cast::<*const *const c_void>() };
        // SAFETY: by dxcapi.h, the table has this index.
        let entry = unsafe { table.add(index) };
        // SAFETY: the caller guarantees the type.
        unsafe { *entry.cast::<F>() }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: every COM object has `Release` at this index.
        let release: Release = unsafe { self.function(RELEASE) };
        // SAFETY: nothing uses the object after this.
        unsafe { release(self.0) };
    }
}

/// The compiler.
pub struct Dxc {
    compiler: Owned,
    /// Declared last, so that it is unloaded after the compiler is released.
    _library: Library,
}

impl Dxc {
    /// Loads `libdxcompiler.so`.
    pub fn load(file: &OsStr) -> Result<Dxc> {
        let name = file.display();
        // SAFETY: the library's initializers have no requirements.
        let library = unsafe { Library::new(file) }.with_context(|| format!("cannot load `{name}`"))?;
        // SAFETY: the type is the one in dxcapi.h.
        let create: Symbol<'_, Create> =
            unsafe { library.get(b"DxcCreateInstance\0") }.with_context(|| format!("`{name}` is not DXC"))?;
        let mut compiler = null_mut();
        // SAFETY: the class and interface ids are those in dxcapi.h.
        let code = unsafe { create(&CLSID_COMPILER, &IID_COMPILER3, &mut compiler) };
        ensure!(code >= 0 && !compiler.is_null(), "`{name}` has no compiler: {code:#x}");
        Ok(Dxc { compiler: Owned(compiler), _library: library })
    }

    /// Compiles a compute shader to DXIL and validates it, with wgpu-hal's options. The error is DXC's message.
    pub fn compile(&self, hlsl: &str, entry_point: &str) -> Result<(), String> {
        let words = ["-E", entry_point, "-T", "cs_6_5", "-HV", "2018", "-no-warnings", "-Ges", "-enable-16bit-types"];
        // `wchar_t` has 32 bits on Linux.
        let wide = |word: &&str| word.chars().map(u32::from).chain([0]).collect();
        let words: Vec<Vec<u32>> = words.iter().map(wide).collect();
        let words: Vec<*const u32> = words.iter().map(Vec::as_ptr).collect();
        let source = Source { text: hlsl.as_ptr(), bytes: hlsl.len(), encoding: UTF8 };
        // SAFETY: this is IDxcCompiler3's `Compile`.
        let compile: Compile = unsafe { self.compiler.function(COMPILER3_COMPILE) };
        let mut result = null_mut();
        let count = words.len() as u32;
        // SAFETY: the words end with a zero, and all arguments live until the call returns.
        let code =
            unsafe { compile(self.compiler.0, &source, words.as_ptr(), count, null_mut(), &IID_RESULT, &mut result) };
        if code < 0 || result.is_null() {
            return Err(format!("DXC: {code:#x}"));
        }
        let result = Owned(result);
        // SAFETY: this is IDxcOperationResult's `GetStatus`.
        let status: GetCode = unsafe { result.function(RESULT_STATUS) };
        let mut code = 0;
        // SAFETY: the result is one.
        unsafe { status(result.0, &mut code) };
        if code >= 0 { Ok(()) } else { Err(format!("DXC: {}", errors(&result))) }
    }
}

/// The error messages of a result.
fn errors(result: &Owned) -> String {
    // SAFETY: this is IDxcOperationResult's `GetErrorBuffer`.
    let get: GetObject = unsafe { result.function(RESULT_ERRORS) };
    let mut blob = null_mut();
    // SAFETY: the result is one.
    let code = unsafe { get(result.0, &mut blob) };
    if code < 0 || blob.is_null() {
        return format!("no message ({code:#x})");
    }
    let blob = Owned(blob);
    // SAFETY: this is IDxcBlob's `GetBufferPointer`.
    let pointer: Pointer = unsafe { blob.function(BLOB_POINTER) };
    // SAFETY: this is IDxcBlob's `GetBufferSize`.
    let size: Size = unsafe { blob.function(BLOB_SIZE) };
    // SAFETY: the blob is one.
    let start = unsafe { pointer(blob.0) };
    // SAFETY: the blob is one.
    let len = unsafe { size(blob.0) };
    if start.is_null() {
        return String::new();
    }
    // SAFETY: the blob has this length and lives until the end of this function.
    let bytes = unsafe { std::slice::from_raw_parts(start, len) };
    String::from_utf8_lossy(bytes).trim_end_matches('\0').trim().to_string()
}
