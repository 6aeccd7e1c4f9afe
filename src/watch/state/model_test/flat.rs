//! Without `--recursive`: links lead to files in sub-directories, which are not in the tree.

use super::*;
use crate::watch::target_directories::TARGET_DIRECTORIES_MAX;

/// Links, and what they lead to: two to files, and one by a link to a directory.
const LINKS: [(&str, &str); 3] = [("one", "a/file"), ("two", "a/b/file"), ("three", "current/file")];

impl Scene {
    fn flat(removals: bool) -> Self {
        let mut scene = Self::new(removals, false);
        fs::create_dir_all(scene.path("a/b")).unwrap();
        fs::create_dir_all(scene.path("c")).unwrap();
        ["a/file", "a/b/file"].iter().for_each(|path| scene.write(path));
        symlink("a", scene.path("current")).unwrap();
        LINKS.iter().for_each(|(name, target)| symlink(target, scene.path(name)).unwrap());
        scene.rest();
        scene
    }

    /// What each link leads to that leads to a file.
    fn led_to(&self) -> BTreeMap<PathBuf, Digests> {
        let links = LINKS.iter().map(|(name, _)| self.path(name));
        links.filter_map(|path| fs::read(&path).ok().map(|content| (path, Digests::of(&content)))).collect()
    }

    fn published_links(&self) -> BTreeMap<PathBuf, Digests> {
        let names = LINKS.iter().map(|(name, _)| self.path(name));
        names.filter_map(|path| self.published.get(&path).map(|digests| (path, *digests))).collect()
    }
}

#[test]
fn what_is_written_in_a_sub_directory_is_published_by_the_links_that_lead_to_it() {
    let mut scene = Scene::flat(false);
    for written in ["a/file", "a/b/file"] {
        scene.write(written);
        scene.rest();
        assert_eq!(scene.published_links(), scene.led_to(), "{written}");
    }
    assert!(
        scene.published.keys().all(|path| path.parent() == Some(&scene.path("").components().collect::<PathBuf>()))
    );
}

#[test]
fn a_directory_on_the_way_that_is_another_is_followed() {
    let mut scene = Scene::flat(false);
    fs::create_dir(scene.path("c/b")).unwrap();
    ["c/file", "c/b/file"].iter().for_each(|path| scene.write(path));
    scene.exchange("a", "c");
    scene.rest();
    assert_eq!(scene.published_links(), scene.led_to());
    scene.write("a/b/file");
    scene.rest();
    assert_eq!(scene.published_links(), scene.led_to());
}

#[test]
fn a_directory_that_is_made_later_is_followed() {
    let mut scene = Scene::flat(false);
    fs::remove_dir_all(scene.path("a")).unwrap();
    scene.rest();
    fs::create_dir(scene.path("a")).unwrap();
    scene.rest();
    fs::create_dir(scene.path("a/b")).unwrap();
    scene.rest();
    scene.write("a/b/file");
    scene.rest();
    assert_eq!(scene.published_links()[&scene.path("two")], scene.led_to()[&scene.path("two")]);
}

#[test]
fn a_directory_that_no_link_leads_into_any_more_loses_its_watch() {
    let mut scene = Scene::flat(false);
    // `a` and `a/b`; `targets` is not led to.
    assert_eq!(scene.state.target_directories.paths().count(), 2);
    LINKS.iter().for_each(|(name, _)| fs::remove_file(scene.path(name)).unwrap());
    ["a/file", "a/b/file"].iter().for_each(|path| scene.write(path));
    scene.rest();
    assert_eq!(scene.state.target_directories.paths().count(), 0);
}

/// Where there is no room for a watch, those that no link needs any more end first.
#[test]
fn directories_that_links_lead_into_are_bounded() {
    let mut scene = Scene::new(false, false);
    for number in 0..=TARGET_DIRECTORIES_MAX {
        fs::create_dir(scene.path(&format!("d{number}"))).unwrap();
        symlink(format!("d{number}/file"), scene.path(&format!("l{number}"))).unwrap();
    }
    scene.rest();
    assert_eq!(scene.state.target_directories.paths().count(), TARGET_DIRECTORIES_MAX);
    let last = (0..=TARGET_DIRECTORIES_MAX).find(|number| {
        let path = scene.path(&format!("d{number}")).into_os_string().into_vec();
        scene.state.target_directories.paths().all(|watched| **watched != path[..])
    });
    let (last, other) = (last.unwrap(), if last == Some(0) { 1 } else { 0 });
    fs::remove_file(scene.path(&format!("l{other}"))).unwrap();
    scene.rest();
    scene.link(&format!("d{last}/file"), &format!("l{last}"));
    scene.rest();
    scene.write(&format!("d{last}/file"));
    scene.rest();
    scene.assert_published_last(&format!("l{last}"));
}

fn path() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/b", "c", "c/b", "current"]).prop_map(str::to_owned)
}

fn file() -> impl Strategy<Value = String> {
    path().prop_map(|directory| format!("{directory}/file"))
}

fn step() -> impl Strategy<Value = Step> {
    let either = || prop_oneof![path(), file()];
    let target = prop::sample::select(vec![
        "a",
        "a/file",
        "a/b",
        "a/b/file",
        "c",
        "c/file",
        "c/b",
        "c/b/file",
        "current",
        "current/file",
    ]);
    let link = prop::sample::select(vec!["one", "two", "three", "current"]).prop_map(str::to_owned);
    prop_oneof![
        6 => file().prop_map(Step::Write),
        2 => path().prop_map(Step::Make),
        2 => file().prop_map(Step::LinkIn),
        3 => (either(), either()).prop_map(|(from, to)| Step::Rename(from, to)),
        3 => (either(), either()).prop_map(|(one, other)| Step::Exchange(one, other)),
        2 => either().prop_map(Step::Remove),
        2 => (target, link).prop_map(|(target, path)| Step::Link(target, path)),
        1 => Just(Step::Overflow),
        4 => Just(Step::ReadEvents),
        3 => Just(Step::Rescan),
        3 => (1..4usize).prop_map(Step::Dispatch),
        3 => any::<Index>().prop_map(Step::Complete),
        1 => Just(Step::Restart),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_sub_directories_each_link_into_them_is_published_last(
        steps in prop::collection::vec(step(), 1..40),
        removals: bool,
    ) {
        let mut scene = Scene::flat(removals);
        steps.iter().for_each(|step| scene.act(step));
        scene.rest();
        let mut published = scene.published_links();
        if !removals {
            published.retain(|path, _| fs::metadata(path).is_ok_and(|metadata| metadata.is_file()));
        }
        prop_assert_eq!(published, scene.led_to());
    }
}
