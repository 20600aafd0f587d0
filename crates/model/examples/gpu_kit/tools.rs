//! Steps `sanitizer` and `profile`: NVIDIA's own tools around cases of other steps, where they are installed.

use crate::children::arguments;
use crate::report::{self, Found, Outcome, parse};
use crate::{Options, ops};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) fn sanitizer_cases(_: &Options) -> Vec<String> {
    ["memcheck", "racecheck", "synccheck", "initcheck"].map(str::to_owned).to_vec()
}

pub(crate) fn profile_cases(options: &Options) -> Vec<String> {
    let attention = if options.sim { "attention 2 70" } else { "attention 16 4096" };
    ["dense", "experts", attention].map(str::to_owned).to_vec()
}

/// On the PATH, or in a toolkit.
fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let toolkit = Path::new("/usr/local/cuda/bin").to_path_buf();
    std::env::split_paths(&path).chain([toolkit]).map(|folder| folder.join(tool)).find(|path| path.is_file())
}

/// `tool` around this program's case, ended with all that it started when its time is over.
fn around(
    tool: &Path,
    tool_args: &[&str],
    seconds: u32,
    (step, case): (&str, &str),
    options: &Options,
) -> Result<Output, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut command = Command::new("timeout");
    command.args(["-k", "2", &seconds.to_string()]).arg(tool).args(tool_args).arg(program);
    command.args(arguments(step, case, options)).stdin(Stdio::null());
    command.output().map_err(|e| format!("timeout {}: {e}", tool.display()))
}

/// Small cases of `ops`.
pub(crate) fn sanitize(tool: &str, options: &Options) -> Result<(), String> {
    const STEP: &str = "sanitizer";
    const ERRORS: i32 = 9;
    let sanitizer = match find("compute-sanitizer") {
        Some(path) if !options.sim => path,
        _ => {
            report::emit(STEP, tool, Outcome::Absent, Found::says("no compute-sanitizer, or no GPU"));
            return Ok(());
        }
    };
    for case in ops::sanitized() {
        report::case(STEP, &format!("{tool}: {case}"), Outcome::Passed, || {
            let args = ["--tool", tool, "--error-exitcode", &ERRORS.to_string(), "--print-limit", "3"];
            let output = around(&sanitizer, &args, 40, ("ops", case), options)?;
            let said = String::from_utf8_lossy(&output.stdout);
            let records: Vec<_> = said.lines().filter_map(parse).collect();
            let passed = !records.is_empty() && records.iter().all(|r| r.outcome == Outcome::Passed);
            if output.status.success() && passed {
                return Ok(Found::default());
            }
            let marked = said.lines().filter(|line| line.starts_with("=========") && line.len() > 12);
            let of_the_case = records.iter().map(|r| r.detail.as_str());
            let what: Vec<&str> = marked.take(6).chain(of_the_case).collect();
            Err(format!("{}: {}", output.status, what.join(" | ")))
        });
    }
    Ok(())
}

/// The first launches of a case of `timing`, by Nsight Compute.
pub(crate) fn profile(case: &str, options: &Options) -> Result<(), String> {
    const STEP: &str = "profile";
    const METRICS: [&str; 4] = [
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
        "sm__warps_active.avg.pct_of_peak_sustained_active",
        "l1tex__data_bank_conflicts_pipe_lsu.sum",
    ];
    let absent = |why: String| report::emit(STEP, case, Outcome::Absent, Found::says(why));
    let ncu = match find("ncu") {
        Some(path) if !options.sim => path,
        _ => {
            absent("no ncu, or no GPU".into());
            return Ok(());
        }
    };
    let pattern = format!("regex:{}", if case.starts_with("attention") { "mla" } else { "product" });
    let metrics = METRICS.join(",");
    let args = ["--csv", "--metrics", &metrics, "-k", &pattern, "-c", "3", "--kill", "yes"];
    let output = around(&ncu, &args, 25, ("timing", case), options)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if said.contains("ERR_NVGPUCTRPERM") {
        absent("performance counters are for administrators here (ERR_NVGPUCTRPERM)".into());
        return Ok(());
    }
    let rows: Vec<Vec<String>> = said.lines().filter(|line| line.starts_with('"')).map(fields).collect();
    let Some((titles, rows)) = rows.split_first() else {
        let last = said.lines().rev().find(|line| line.starts_with("==")).unwrap_or("ncu says nothing");
        absent(last.to_owned());
        return Ok(());
    };
    let column = |name: &str| titles.iter().position(|title| title == name);
    let columns = ["ID", "Kernel Name", "Metric Name", "Metric Value"].map(column);
    let [Some(id), Some(kernel), Some(metric), Some(value)] = columns else {
        return Err(format!("ncu's columns are {titles:?}"));
    };
    let mut launches: Vec<(String, String, Found)> = Vec::new();
    for row in rows.iter().filter(|row| row.len() == titles.len()) {
        if launches.last().is_none_or(|(known, ..)| *known != row[id]) {
            launches.push((row[id].clone(), row[kernel].clone(), Found::default()));
        }
        let number = row[value].replace(',', "").parse::<f64>().unwrap_or(f64::NAN);
        if let Some((.., found)) = launches.last_mut().filter(|_| number.is_finite()) {
            found.numbers.insert(row[metric].clone(), number.into());
        }
    }
    for (id, kernel, found) in launches {
        report::emit(STEP, &format!("{case} #{id} {kernel}"), Outcome::Measured, found);
    }
    Ok(())
}

/// A line of quoted fields; none of ncu's holds a quote.
fn fields(line: &str) -> Vec<String> {
    line.trim_matches('"').split("\",\"").map(str::to_owned).collect()
}
