package qemuimg

// snapshotsTable is the part of the comparison that is about checks of images
// with snapshots. The damaged images are those of [damagedSnapshots].
var snapshotsTable = []diffGroup{
	{name: "snapshot tables", cases: []diffCase{
		{lines: "check snapextra.qcow2; check -r leaks snapextra.qcow2; info snapextra.qcow2; snapshot -l snapextra.qcow2; snapshot -c x snapextra.qcow2"},
		{lines: "check -r all snapextra.qcow2; check -q snapextra.qcow2; snapshot -l snapextra.qcow2"},
		{lines: "check --output=json snapextra.qcow2"},
		{lines: "check -q snapextra.qcow2"},
		{lines: "check snapshort.qcow2; check --output=json snapshort.qcow2; snapshot -l snapshort.qcow2"},
		{lines: "check -r all snapshort.qcow2; check -r all snapshort.qcow2"},
		{lines: "check -r leaks snapshort.qcow2"},
		{lines: "check -r all --output=json snapshort.qcow2"},
		{lines: "check -q -r all snapshort.qcow2"},
		{lines: "snapshot -c x snapshort.qcow2; check -q snapshort.qcow2; snapshot -l snapshort.qcow2"},
		{lines: "snapshot -d one snapshort.qcow2; check -q snapshort.qcow2; snapshot -l snapshort.qcow2"},
		{lines: "check snapcount.qcow2; info snapcount.qcow2; snapshot -l snapcount.qcow2"},
		{lines: "check snapodd.qcow2; info snapodd.qcow2; check -r all snapodd.qcow2"},
		{lines: "check snapnone.qcow2; check -r all snapnone.qcow2; check -q snapnone.qcow2"},
		{lines: "check snapl1odd.qcow2; info snapl1odd.qcow2; check -r leaks snapl1odd.qcow2"},
		{lines: "snapshot -a one snapl1odd.qcow2; snapshot -d one snapl1odd.qcow2"},
		{lines: "check snapl1huge.qcow2; info snapl1huge.qcow2"},
		{lines: "snapshot -a one snapl1huge.qcow2; snapshot -d one snapl1huge.qcow2"},
		{lines: "check snapname.qcow2; snapshot -l snapname.qcow2; info --output=json snapname.qcow2"},
		{lines: "snapshot -d two snapname.qcow2; snapshot -l snapname.qcow2"},
	}},
}
