use super::*;
use crate::atomic::{names_in, scratch};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A checkpoint that says which it is.
fn view(number: u32) -> CheckpointView<'static> {
    let mut view = CheckpointView::default();
    view.set("number", &number);
    view
}

fn number(loaded: &Checkpoint) -> u32 {
    loaded.get("number").unwrap()
}

fn number_in(path: PathBuf) -> u32 {
    number(&Checkpoint::open(path).unwrap())
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // A new file: `best.ckpt` and `previous.ckpt` may be links to the same one.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_last_two_and_the_best_are_kept() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(folder.join("runs/a")).unwrap();
    for n in 1..=4 {
        run.save_last(&view(n)).unwrap();
        if n == 2 {
            run.save_best().unwrap();
        }
    }
    assert_eq!([LAST, PREVIOUS, BEST].map(|name| number_in(run.file(name))), [4, 3, 2]);
    assert_eq!(names_in(run.path()), [BEST, LAST, LOCK, PREVIOUS]);
    let loaded = run.load_latest().unwrap();
    assert_eq!((number(&loaded.checkpoint), loaded.warning), (4, None));
    assert_eq!(loaded.checkpoint.path(), run.file(LAST));
}

#[test]
fn a_damaged_last_falls_back_and_never_replaces_the_good_one() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.save_last(&view(1)).unwrap();
    run.save_last(&view(2)).unwrap();
    drop(run);
    damage(&folder.join(LAST));
    let mut run = RunFolder::open(&folder).unwrap();
    let loaded = run.load_latest().unwrap();
    assert_eq!(number(&loaded.checkpoint), 1);
    let warning = loaded.warning.unwrap();
    assert!(warning.contains("last.ckpt") && warning.contains("checksum"), "{warning}");
    assert!(warning.ends_with("continuing from previous.ckpt instead"), "{warning}");
    run.save_last(&view(3)).unwrap();
    assert_eq!([LAST, PREVIOUS].map(|name| number_in(run.file(name))), [3, 1]);
    run.save_last(&view(4)).unwrap();
    assert_eq!([LAST, PREVIOUS].map(|name| number_in(run.file(name))), [4, 3]);
}

#[test]
fn a_missing_last_falls_back() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.save_last(&view(1)).unwrap();
    run.save_last(&view(2)).unwrap();
    fs::remove_file(run.file(LAST)).unwrap();
    let loaded = run.load_latest().unwrap();
    assert_eq!(number(&loaded.checkpoint), 1);
    assert!(loaded.warning.unwrap().contains("last.ckpt: there is none; continuing"));
}

#[test]
fn with_nothing_good_the_error_says_why_for_each() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.write_text(CONFIG, "").unwrap();
    let error = run.load_latest().unwrap_err();
    assert!(error.to_string().contains("no checkpoint has been saved in it yet"), "{error}");
    assert!(error.hint().unwrap().contains("--out"));
    run.save_last(&view(1)).unwrap();
    run.save_best().unwrap();
    run.save_last(&view(2)).unwrap();
    damage(&run.file(LAST));
    fs::write(run.file(PREVIOUS), "").unwrap();
    let error = run.load_latest().unwrap_err();
    let text = error.to_string();
    for part in
        ["cannot resume", "last.ckpt: expected", "checksum", "previous.ckpt: expected", "an empty file"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(error.hint().unwrap().contains("--resume"), "{error}");
}

#[test]
fn a_failed_save_keeps_both_checkpoints() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.save_last(&view(1)).unwrap();
    run.save_last(&view(2)).unwrap();
    // A folder in the place of `previous.ckpt` makes the rotation fail, after the new one was written.
    fs::remove_file(run.file(PREVIOUS)).unwrap();
    fs::create_dir_all(run.file(PREVIOUS).join("in the way")).unwrap();
    assert!(run.save_last(&view(3)).is_err());
    assert_eq!(number_in(run.file(LAST)), 2);
    assert_eq!(names_in(run.path()), [LAST, LOCK, PREVIOUS]);
}

#[test]
fn a_new_run_does_not_touch_an_old_one() {
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.save_last(&view(1)).unwrap();
    drop(run);
    let error = RunFolder::create(&folder).unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
    assert!(error.hint().unwrap().contains("--resume"));
    assert_eq!(error.exit_code(), 2);
    assert_eq!(number_in(folder.join(LAST)), 1);
}

#[test]
fn a_killed_start_or_foreign_files_do_not_prevent_a_run() {
    let (_dir, folder) = scratch();
    drop(RunFolder::create(&folder).unwrap());
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    RunFolder::create(&folder).unwrap();
}

#[test]
fn opening_removes_the_leftovers_of_a_killed_save() {
    let (_dir, folder) = scratch();
    RunFolder::create(&folder).unwrap().save_last(&view(1)).unwrap();
    for name in [".last.ckpt.Xy12.tmp", ".curves.svg.Xy12.tmp", ".train.index.Xy12.tmp"] {
        fs::write(folder.join(name), "half").unwrap();
    }
    RunFolder::open(&folder).unwrap();
    assert_eq!(names_in(&folder), [LAST, LOCK]);
}

#[test]
fn what_is_no_run_cannot_be_opened() {
    let (_dir, folder) = scratch();
    assert!(RunFolder::open(&folder).unwrap_err().to_string().contains("it holds no run"));
    let absent = folder.join("absent");
    assert!(RunFolder::open(&absent).unwrap_err().to_string().contains("no such folder"));
    assert!(!absent.exists());
    assert_eq!(names_in(&folder), Vec::<String>::new());
}

#[test]
fn one_run_at_a_time_and_the_holder_is_named() {
    let (_dir, folder) = scratch();
    let run = RunFolder::create(&folder).unwrap();
    assert!(run.is_locked());
    run.write_text(CONFIG, "").unwrap();
    for error in [RunFolder::open(&folder).unwrap_err(), RunFolder::create(&folder).unwrap_err()] {
        assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    }
    drop(run);
    RunFolder::open(&folder).unwrap();
}

#[test]
fn a_folder_that_is_removed_or_taken_over_is_not_written_to() {
    let (_dir, folder) = scratch();
    let runs = folder.join("runs");
    let mut first = RunFolder::create(runs.join("a")).unwrap();
    first.save_last(&view(1)).unwrap();
    // Somebody removes the lock to get around it, and another process begins.
    fs::remove_file(first.file(LOCK)).unwrap();
    let error = first.save_last(&view(2)).unwrap_err().to_string();
    assert!(error.contains("removed or replaced its lock"), "{error}");
    let mut second = RunFolder::open(runs.join("a")).unwrap();
    second.load_latest().unwrap();
    second.save_last(&view(10)).unwrap();
    for refused in [first.save_last(&view(2)), first.save_best(), first.write_text(CONFIG, "")] {
        assert!(refused.unwrap_err().to_string().contains("no longer locked by this process"));
    }
    assert_eq!(number_in(second.file(LAST)), 10);
    assert_eq!(names_in(second.path()), [LAST, LOCK, PREVIOUS]);
    // Moved away, and another run at its place.
    fs::rename(runs.join("a"), runs.join("b")).unwrap();
    let error = second.save_last(&view(11)).unwrap_err().to_string();
    assert!(error.contains("a: expected") && error.contains("removed or moved away"), "{error}");
    let mut third = RunFolder::create(runs.join("a")).unwrap();
    third.save_last(&view(20)).unwrap();
    assert!(second.save_last(&view(11)).is_err());
    assert_eq!([number_in(runs.join("a").join(LAST)), number_in(runs.join("b").join(LAST))], [20, 10]);
}

/// Names the folder for the child process of the test below.
#[cfg(unix)]
const CHILD: &str = "LEMNISCATE_TEST_RUN_FOLDER";

/// A child saves checkpoints as fast as it can and is killed at some moment; each time the run must be intact.
#[cfg(unix)]
#[test]
fn killed_while_saving_the_run_and_its_lock_survive() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let mut run = RunFolder::open(folder).unwrap();
        let mut n = number(&run.load_latest().unwrap().checkpoint);
        let bank = vec![n as f32; 50_000];
        loop {
            n += 1;
            let mut view = view(n);
            view.tensors.push(format::TensorBytes::from_f32("bank", [50_000], &bank));
            run.save_last(&view).unwrap();
            run.save_best().unwrap();
        }
    }
    let (_dir, folder) = scratch();
    let mut run = RunFolder::create(&folder).unwrap();
    run.save_last(&view(1)).unwrap();
    run.save_best().unwrap();
    drop(run);
    let mut newest = 1;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "checkpoint::run_folder::tests::killed_while_saving_the_run_and_its_lock_survive",
            ])
            .env(CHILD, &folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Once it has saved something, at a moment that differs from round to round.
        while load_latest(&folder).map_or(0, |l| number(&l.checkpoint)) <= newest {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut run = RunFolder::open(&folder).unwrap();
        let loaded = run.load_latest().unwrap();
        assert_eq!(loaded.warning, None, "last.ckpt is replaced, never absent");
        let n = number(&loaded.checkpoint);
        assert!(n > newest);
        newest = n;
        assert!(number_in(run.file(PREVIOUS)) + 1 >= n);
        assert!(number_in(run.file(BEST)) <= n);
        assert_eq!(names_in(&folder), [BEST, LAST, LOCK, PREVIOUS]);
    }
}

#[test]
fn default_folders_are_named_by_time_data_and_architecture() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    assert_eq!(default_name(at(0), "CIFAR-10", "resnet18"), "1970-01-01-0000-cifar-10-resnet18");
    // 2024-02-29 23:59:59 and 2026-12-31 00:00 UTC, by `date -u -d @...`.
    assert_eq!(
        default_name(at(1_709_251_199), "my photos/", "resnet50"),
        "2024-02-29-2359-my-photos-resnet50"
    );
    assert_eq!(default_name(at(1_798_675_200), "…", "resnet18"), "2026-12-31-0000-data-resnet18");
    assert_eq!(default_name(at(4_107_542_400), "x", "y"), "2100-03-01-0000-x-y");
}

#[test]
fn default_folders_do_not_collide() {
    let (_dir, folder) = scratch();
    let parent = folder.join("runs");
    let runs: Vec<_> =
        (0..3).map(|_| RunFolder::create_in(&parent, "cifar10", "resnet18").unwrap()).collect();
    let mut paths: Vec<_> = runs.iter().map(|run| run.path().to_owned()).collect();
    paths.dedup();
    assert_eq!(paths.len(), 3);
    assert_eq!(names_in(&parent).len(), 3);
}
