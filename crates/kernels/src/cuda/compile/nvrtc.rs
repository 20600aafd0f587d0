//! NVIDIA's run-time compiler, loaded if it is there: sources to machine code, with no toolkit.
//!
//! By its C interface ("NVRTC", section 3), as cudarc's looks for the library by bare names only and panics without it.

use super::{Source, Version};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::ptr;

/// The kernels say themselves where a product and a sum are rounded once: a compiler that chose could choose differently for
/// two copies of a loop, and a token's bits would depend on which of them it met.
pub(super) const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];
/// Major versions that are looked for, the newest first.
const MAJORS: [u32; 2] = [13, 12];
/// Of the compiler's log, as part of an error.
const LOG_CHARS: usize = 2000;

type Program = *mut c_void;
type Status = c_int;

/// The functions that are called, by their signatures in `nvrtc.h`.
#[derive(Clone, Copy)]
struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

pub(super) struct Nvrtc {
    api: Api,
    version: Version,
}

impl Nvrtc {
    /// One whose code a driver of that major version loads, else a newer one. `None` where there is none that can make
    /// machine code.
    pub(super) fn open(toolkits: &[PathBuf], driver_major: u32) -> Option<Self> {
        let folders = || toolkits.iter().flat_map(|toolkit| [toolkit.join("lib64"), toolkit.join("lib")]);
        let (fit, newer): (Vec<u32>, Vec<u32>) = MAJORS.into_iter().partition(|major| *major <= driver_major);
        let library = [fit, newer].iter().find_map(|majors| {
            let here = folders().find_map(|folder| in_folder(&folder, majors));
            here.or_else(|| majors.iter().find_map(|major| load(&file(*major))))
        })?;
        // Never unloaded: it keeps threads and state of its own.
        let library = ManuallyDrop::new(library);
        let api = Api::of(&library)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers that live on.
        let status = unsafe { (api.version)(&raw mut major, &raw mut minor) };
        let version = Version { major: major.try_into().ok()?, minor: minor.try_into().ok()? };
        (status == 0).then_some(Self { api, version })
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// Machine code of a source for `sm_…`, or the compiler's complaint.
    pub(super) fn cubin(&self, source: &Source, headers: &[Source], target: &str) -> Result<Vec<u8>, String> {
        let program = Compilation::new(self.api, source, headers)?;
        let options: Vec<CString> = [format!("--gpu-architecture={target}")]
            .into_iter()
            .chain(OPTIONS.map(String::from))
            .map(text)
            .collect();
        let pointers = pointers(&options);
        // SAFETY: the program is whole, and the options live through the call.
        let status = unsafe { (self.api.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
        if let Err(why) = self.api.checked(status) {
            return Err(format!("{why}: {}", program.log()));
        }
        let mut bytes = 0;
        // SAFETY: the program is compiled; `bytes` lives on.
        self.api.checked(unsafe { (self.api.cubin_size)(program.raw, &raw mut bytes) })?;
        if bytes == 0 {
            return Err("it makes no machine code".into());
        }
        let mut cubin = vec![0u8; bytes];
        // SAFETY: the buffer is as long as the library has just said.
        self.api.checked(unsafe { (self.api.cubin)(program.raw, cubin.as_mut_ptr().cast()) })?;
        Ok(cubin)
    }
}

impl Api {
    fn of(library: &Library) -> Option<Self> {
        /// # Safety
        /// `T` is the type of the function of that name.
        unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Option<T> {
            // SAFETY: as the caller promises.
            unsafe { library.get::<T>(name) }.ok().map(|symbol| *symbol)
        }
        // SAFETY: the fields' types are those of nvrtc.h since CUDA 11.2.
        unsafe {
            Some(Self {
                version: function(library, c"nvrtcVersion")?,
                error: function(library, c"nvrtcGetErrorString")?,
                create: function(library, c"nvrtcCreateProgram")?,
                destroy: function(library, c"nvrtcDestroyProgram")?,
                compile: function(library, c"nvrtcCompileProgram")?,
                log_size: function(library, c"nvrtcGetProgramLogSize")?,
                log: function(library, c"nvrtcGetProgramLog")?,
                cubin_size: function(library, c"nvrtcGetCUBINSize")?,
                cubin: function(library, c"nvrtcGetCUBIN")?,
            })
        }
    }

    fn checked(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: for any status the library answers with a text of its own that is never freed.
        let said = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(said.to_string_lossy().into_owned())
    }
}

/// A program under way; it points to the texts.
struct Compilation {
    api: Api,
    raw: Program,
    _texts: Vec<CString>,
}

impl Compilation {
    fn new(api: Api, source: &Source, headers: &[Source]) -> Result<Self, String> {
        let bodies: Vec<CString> = headers.iter().map(|header| text(header.text)).collect();
        let names: Vec<CString> = headers.iter().map(|header| text(header.name)).collect();
        let own = [text(source.text), text(format!("{}.cu", source.name))];
        let mut raw = ptr::null_mut();
        // SAFETY: all are strings that end with 0 and live as long as the program; the two lists are equally long.
        let status = unsafe {
            (api.create)(
                &raw mut raw,
                own[0].as_ptr(),
                own[1].as_ptr(),
                headers.len() as c_int,
                pointers(&bodies).as_ptr(),
                pointers(&names).as_ptr(),
            )
        };
        api.checked(status)?;
        Ok(Self { api, raw, _texts: [bodies, names, own.into()].concat() })
    }

    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the program is whole; `bytes` lives on.
        let status = unsafe { (self.api.log_size)(self.raw, &raw mut bytes) };
        let mut log = vec![0u8; if status == 0 { bytes } else { 0 }];
        // SAFETY: the buffer is as long as the library has just said.
        if log.is_empty() || unsafe { (self.api.log)(self.raw, log.as_mut_ptr().cast()) } != 0 {
            return "without a word".into();
        }
        let said = String::from_utf8_lossy(&log);
        said.trim_end_matches('\0').trim().chars().take(LOG_CHARS).collect()
    }
}

impl Drop for Compilation {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once.
        unsafe { (self.api.destroy)(&raw mut self.raw) };
    }
}

/// Our sources and options hold no 0; a text that did would be cut there.
fn text(text: impl Into<Vec<u8>>) -> CString {
    let bytes: Vec<u8> = text.into();
    CString::new(bytes).unwrap_or_default()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

fn file(major: u32) -> PathBuf {
    let name = if cfg!(windows) { format!("nvrtc64_{major}0_0.dll") } else { format!("libnvrtc.so.{major}") };
    name.into()
}

/// A toolkit's own library. It opens its built-in functions by a bare name, which is found once they are loaded.
fn in_folder(folder: &Path, majors: &[u32]) -> Option<Library> {
    majors.iter().find_map(|major| {
        let library = folder.join(file(*major));
        if !library.is_file() {
            return None;
        }
        for minor in 0..10 {
            let builtins = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
            if builtins.is_file() {
                load(&builtins).map(ManuallyDrop::new);
            }
        }
        load(&library)
    })
}

fn load(library: &Path) -> Option<Library> {
    // SAFETY: NVIDIA's libraries may be loaded at any time; what they run then touches nothing of ours.
    unsafe { Library::new(library) }.ok()
}
