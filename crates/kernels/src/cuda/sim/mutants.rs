//! Kernels with a mistake planted in their source, to see that tests find it.

use super::table::{LaunchFn, ModulesFn, Table, table};
use super::{Emulator, lock};
use libloading::Library;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A mistake: in `csrc/{file}`, kernels or a header, the one place that reads `from` reads `to`.
#[derive(Debug, Clone, Copy)]
pub struct Mutant {
    pub file: &'static str,
    pub from: &'static str,
    pub to: &'static str,
}

/// Kernels that were compiled while the program runs, to take the place of those that it was built with.
pub struct Module {
    kernels: Table,
}

/// # Panics
/// unless `case` accepts the sources as they are and refuses each mutant, whose kernels it is given for
/// [`Emulator::replace`]: by the emulator's error, or because numbers are wrong.
pub fn all_are_found(mutants: &[Mutant], case: impl Fn(Option<&Module>) -> Result<(), String>) {
    case(None).expect("the case passes without a mistake");
    let mut escaped = Vec::new();
    for mutant in mutants {
        let module = Module::compile(mutant).unwrap_or_else(|e| panic!("{mutant:?}: {e}"));
        match case(Some(&module)) {
            Ok(()) => escaped.push(mutant),
            Err(how) => println!("{} -> {}\n    found: {how}", mutant.from, mutant.to),
        }
    }
    assert!(escaped.is_empty(), "not found: {escaped:#?}");
}

impl Emulator {
    /// From now on runs the module's kernels where it has some of the name asked for.
    pub fn replace(&self, module: &Module) {
        lock(&self.handle).replaced.extend(module.kernels.iter().map(|(name, entry)| (*name, *entry)));
    }
}

impl Module {
    /// Compiles the mutated source, or all kernels that include the mutated header, to a library and loads it, for as
    /// long as the program runs.
    pub fn compile(mutant: &Mutant) -> Result<Self, String> {
        let mut sources = sources()?;
        let mutated = sources.get_mut(mutant.file).ok_or("no such file in csrc")?;
        let places = mutated.matches(mutant.from).count();
        if places != 1 {
            return Err(format!("{places} places read so, not one"));
        }
        *mutated = mutated.replace(mutant.from, mutant.to);
        let kernels = |name: &&String| name.ends_with(".cu") && reaches(&sources, name, mutant.file);
        let files: Vec<&str> = sources.keys().filter(kernels).map(String::as_str).collect();
        Self::load(&sources, &files)
    }

    /// Compiles and loads kernels that are not part of `csrc`.
    pub fn of_source(source: &Path) -> Result<Self, String> {
        let name = source.file_name().and_then(|n| n.to_str()).ok_or("a source without a name")?;
        Self::load(&Sources::from([(name.into(), read(source)?)]), &[name])
    }

    /// All `sources` are at hand, `files` among them are compiled.
    fn load(sources: &Sources, files: &[&str]) -> Result<Self, String> {
        let scratch = Scratch::new()?;
        let file = |name: &str| scratch.0.join(name);
        let write = |name: &str, text: &str| {
            std::fs::write(file(name), text).map_err(|e| format!("{}: {e}", file(name).display()))
        };
        for (name, text) in sources {
            write(name, &as_module(name, text))?;
        }
        write("modules.cpp", &list_modules(files))?;
        let compiled = Command::new(env!("SIM_CXX"))
            .args(env!("SIM_FLAGS").split_whitespace())
            .args(["-w", "-shared", "-Wl,-Bsymbolic", "-I"])
            .arg(csrc())
            .args(["-x", "c++"])
            .args(files.iter().chain(&["modules.cpp"]).map(|name| file(name)))
            .args(["-x", "none", "-Wl,--whole-archive"])
            .arg(Path::new(env!("SIM_LIBRARIES")).join("libstrait_sim_core.a"))
            .arg("-Wl,--no-whole-archive")
            .arg("-o")
            .arg(file("mutant.so"))
            .output()
            .map_err(|e| format!("{}: {e}", env!("SIM_CXX")))?;
        if !compiled.status.success() {
            return Err(String::from_utf8_lossy(&compiled.stderr).into_owned());
        }
        open(&file("mutant.so"))
    }
}

/// Kernels and headers by name.
type Sources = BTreeMap<String, String>;

fn csrc() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/csrc")
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// All of `csrc` but the emulator, which is compiled already.
fn sources() -> Result<Sources, String> {
    let entries = std::fs::read_dir(csrc()).map_err(|e| e.to_string())?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let ours = |name: &String| !name.starts_with("sim") && (name.ends_with(".cu") || name.ends_with(".h"));
    names.filter(ours).map(|name| Ok((name.clone(), read(&csrc().join(&name))?))).collect()
}

/// Whether `name` is that file or includes it, be it by others.
fn reaches(sources: &Sources, name: &str, file: &str) -> bool {
    name == file
        || sources.get(name).is_some_and(|text| {
            let includes =
                text.lines().filter_map(|line| line.strip_prefix("#include \"")?.split('"').next());
            includes.into_iter().any(|included| reaches(sources, included, file))
        })
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".cu").unwrap_or(file)
}

/// Kernels name the function that lists them; messages name the file as it was.
fn as_module(name: &str, text: &str) -> String {
    if !name.ends_with(".cu") {
        return text.into();
    }
    format!("#define SIM_MODULE sim_module_{}\n#line 1 \"{name}\"\n{text}", stem(name))
}

/// As build.rs lists those of the program.
fn list_modules(files: &[&str]) -> String {
    let (mut functions, mut modules) = (String::new(), String::new());
    for file in files.iter().map(|file| stem(file)) {
        functions += &format!("extern \"C\" const sim::Kernel *sim_module_{file}();\n");
        modules += &format!("{{\"{file}\", sim_module_{file}}}, ");
    }
    let end = "{nullptr, nullptr}";
    format!("#include \"dev.h\"\n{functions}extern const sim::Module sim::modules[] = {{{modules}{end}}};\n")
}

/// A folder of our own, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, String> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("strait-mutant-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path) -> Result<Module, String> {
    // SAFETY: a library that was compiled a moment ago from our own sources, whose functions have these types; forgotten,
    // so that it is never unloaded.
    let table = unsafe {
        let library = Library::new(path).map_err(|e| e.to_string())?;
        let modules: ModulesFn = *library.get(b"sim_modules").map_err(|e| e.to_string())?;
        let launch: LaunchFn = *library.get(b"sim_launch").map_err(|e| e.to_string())?;
        std::mem::forget(library);
        table(modules, launch)
    };
    Ok(Module { kernels: table })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reaches_the_kernels_that_include_it() {
        let source = |name: &str, text: &str| (name.to_string(), text.to_string());
        let sources = Sources::from([
            source("a.cu", "#include \"dev.h\"\n#include \"b.h\"\nKERNEL(WIDTH, 1, a, Nothing) {}\n"),
            source(
                "b.h",
                "#include \"c.h\"\n#define NOTHING_FIELDS(F) F(int, n)\nPARAMS(Nothing, NOTHING_FIELDS)\n",
            ),
            source("c.h", "#define WIDTH 96\n"),
            source("d.cu", "#include \"dev.h\"\n"),
        ]);
        let reached = |file| ["a.cu", "d.cu"].map(|kernels| reaches(&sources, kernels, file));
        assert_eq!(
            [reached("c.h"), reached("dev.h"), reached("d.cu")],
            [[true, false], [true, true], [false, true]]
        );
        let module = Module::load(&sources, &["a.cu", "d.cu"]).expect("it compiles");
        let threads: Vec<_> =
            module.kernels.iter().map(|(name, entry)| (*name, entry.kernel.threads)).collect();
        assert_eq!(threads, [("a", 96)]);
    }
}
