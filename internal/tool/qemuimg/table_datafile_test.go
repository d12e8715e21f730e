package qemuimg

const (
	whySparseMap  = "a new image takes little disk, by which map finds that clusters are only mapped, and looks for holes in the data file"
	whyOwnData    = "a data file that is the image itself or in its chain is refused before anything is touched; the stock tool makes both and removes them"
	whyUnfinished = "a target that could not be filled is removed"
)

// datafileTable is the part of the comparison that is about external data files.
var datafileTable = []diffGroup{
	{name: "data file", fixtures: "create -q -f qcow2 -o data_file=d.data d.qcow2 10M;convert -n -O qcow2 a.raw d.qcow2;" +
		"create -q -f qcow2 -o data_file=r.data,data_file_raw=on r.qcow2 10M;convert -n -O qcow2 a.raw r.qcow2;" +
		"create -q -f qcow2 -o data_file=o.data -b a.raw -F raw o.qcow2;create -q -f qcow2 -o data_file=e.data,cluster_size=4k e.qcow2 1M;" +
		"create -q -f qcow2 -b d.qcow2 -F qcow2 top.qcow2;create -q -f qcow2 -o data_file=gone.data gone.qcow2 1M;create -q -f raw other.data 10M", cases: []diffCase{
		{lines: "create -f qcow2 -o data_file=x.data x 10M; info x; info --output=json x; map x; check x"},
		{lines: "create -f qcow2 -o data_file=x.data,data_file_raw=on x 10M; check x; info x --output=json"},
		{lines: "create -f qcow2 -o data_file=x.data,data_file_raw=on x 10M; map --output=json x", why: whySparseMap, has: `"data": true, "offset": 0`},
		{lines: "create -f qcow2 -o data_file=x.data,data_file_raw=on,preallocation=falloc x 1M; check x"},
		{lines: "create -f qcow2 -o data_file=x.data,preallocation=metadata x 1M; check x"},
		{lines: "create -f qcow2 -o data_file=x.data,preallocation=full x 1M; check x; convert -O raw x y"},
		{lines: "create -q -f qcow2 -o data_file=x.data,cluster_size=512 x 1M; info x; check x"},
		{lines: "create -q -f qcow2 -o data_file=x.data,cluster_size=2M,lazy_refcounts=on,refcount_bits=1 x 5M; info x; check x"},
		{lines: "create -f qcow2 -o data_file_raw=on x 10M"},
		{lines: "create -f qcow2 -o data_file_raw=maybe x 10M"},
		{lines: "create -f qcow2 -o data_file=x.data,data_file_raw=on -b a.raw -F raw x"},
		{lines: "create -f qcow2 -o data_file=x.data,data_file_raw=off -b a.raw -F raw x; map x; check x"},
		{lines: "create -f qcow2 -o data_file=x.data -b a.raw -F raw x; info x; map --output=json x"},
		{lines: "create -f qcow2 -o data_file=x.data,compat=v2 x 1M"},
		{lines: "create -f qcow2 -o data_file=x.data,compat=0.10 x 1M"},
		{lines: "create -f qcow2 -o data_file=nodir/x.data x 1M"},
		{lines: "create -f qcow2 -o data_file= x 1M"},
		{lines: "create -f qcow2 -o data_file=x x 1M", why: whyOwnData, has: `Failed to get shared "resize" lock`},
		{lines: "create -f raw -o data_file=x.data x 1M"},
		{lines: "create -f qcow2 -o data_file=a,,b.data x 1M; info x"},
		{lines: "create -f qcow2 -o data_file=file:x.data x 1M; info x"},
		{lines: "create -f qcow2 -o data_file=./x.data x 1M; info x"},
		{lines: "info d.qcow2; info --output=json d.qcow2; info r.qcow2; info --output=json r.qcow2"},
		{lines: "info gone.qcow2; info --backing-chain top.qcow2; info --backing-chain --output=json o.qcow2"},
		{lines: "map d.qcow2; map --output=json d.qcow2"},
		{lines: "map r.qcow2; map --output=json r.qcow2"},
		{lines: "map o.qcow2; map --output=json o.qcow2; map e.qcow2; map --output=json e.qcow2"},
		{lines: "map top.qcow2; map --output=json top.qcow2"},
		{lines: "check d.qcow2; check --output=json d.qcow2; check r.qcow2; check --output=json r.qcow2"},
		{lines: "check -r all d.qcow2; check -r leaks r.qcow2; check o.qcow2; check e.qcow2; check top.qcow2"},
		{lines: "compare d.qcow2 a.raw; compare r.qcow2 a.raw; compare r.data a.raw; compare top.qcow2 r.qcow2; compare o.qcow2 a.raw"},
		{lines: "compare -s d.qcow2 r.qcow2; compare -s r.qcow2 r.data"},
		{lines: "convert -O raw d.qcow2 x; convert -O raw r.qcow2 y; convert -O qcow2 d.qcow2 z; compare z d.qcow2"},
		{lines: "convert -O qcow2 -o data_file=x.data d.qcow2 x; check x; map x; compare x a.raw"},
		{lines: "convert -O qcow2 -o data_file=x.data,data_file_raw=on d.qcow2 x; check x; compare x a.raw; compare x.data a.raw"},
		{lines: "convert -O qcow2 -o data_file=x.data,cluster_size=4k a.raw x; check x; compare x a.raw; info x"},
		{lines: "convert -O qcow2 -o data_file=x.data -B a.raw -F raw o.qcow2 x; info x; compare x a.raw"},
		{lines: "convert -O qcow2 -o data_file=x.data,data_file_raw=on -B a.raw -F raw o.qcow2 x"},
		{lines: "convert -c -O qcow2 -o data_file=x.data a.raw x", why: whyUnfinished, has: "Operation not supported", otherFiles: true},
		{lines: "convert -O qcow2 -o data_file=a.raw a.raw x"},
		{lines: "convert -n -O qcow2 a.raw e.qcow2"},
		{lines: "create -q -f qcow2 -o data_file=x.data x 10M; convert -n -O qcow2 c.qcow2 x; compare x c.qcow2; check x"},
		{lines: "convert -n -O qcow2 c.qcow2 d.qcow2; compare d.qcow2 c.qcow2; check d.qcow2; compare r.qcow2 a.raw"},
		{lines: "convert -n -O qcow2 c.qcow2 r.qcow2; compare r.qcow2 c.qcow2; check r.qcow2; compare r.data c.qcow2"},
		{lines: "resize d.qcow2 12M; info d.qcow2 --output=json; check d.qcow2; map d.qcow2"},
		{lines: "resize r.qcow2 12M; check r.qcow2; map r.qcow2; compare r.qcow2 r.data"},
		{lines: "resize --shrink d.qcow2 3M; check d.qcow2; map d.qcow2; resize d.qcow2 5M; convert -O raw d.qcow2 x"},
		{lines: "resize --shrink r.qcow2 3M; check r.qcow2; map r.qcow2; resize r.qcow2 5M; compare r.qcow2 r.data"},
		{lines: "resize --preallocation=metadata d.qcow2 12M; check d.qcow2; resize --preallocation=full e.qcow2 2M; check e.qcow2; resize --preallocation=falloc e.qcow2 3M; check e.qcow2"},
		{lines: "resize --shrink d.qcow2 1000k; resize e.qcow2 1049088; check e.qcow2; convert -O raw e.qcow2 x"},
		{lines: "snapshot -l d.qcow2; snapshot -c one d.qcow2"},
		{lines: "map --image-opts driver=qcow2,file.filename=r.qcow2,data-file.filename=other.data"},
		{lines: "map --image-opts driver=qcow2,file.filename=r.qcow2,data-file.driver=file,data-file.filename=other.data"},
		{lines: "map --image-opts driver=qcow2,file.filename=r.qcow2,data-file.driver=raw,data-file.file.filename=other.data"},
		{lines: "map --image-opts driver=qcow2,file.filename=r.qcow2,data-file.filename=nope"},
		{lines: "map --image-opts driver=qcow2,file.filename=r.qcow2,data-file=other.data"},
		{lines: "map --image-opts driver=qcow2,file.filename=a.qcow2,data-file.filename=other.data"},
		{lines: "info --image-opts driver=qcow2,file.filename=r.qcow2,data-file.filename=other.data; info --image-opts driver=qcow2,file.filename=a.qcow2,data-file.filename=nope"},
		{lines: "convert -O raw --image-opts driver=qcow2,file.filename=r.qcow2,data-file.filename=other.data x; compare x r.qcow2"},
		{lines: `map json:{"driver":"qcow2","file":{"filename":"r.qcow2"},"data-file":{"driver":"file","filename":"other.data"}}`},
		{lines: "create -q -f qcow2 -o data_file=x.data x 1M; create -q -f raw x.data 512k; map x; convert -O raw x y; check x"},
		{lines: "dd if=d.qcow2 of=x bs=1M count=2; dd if=a.raw of=d.data bs=512 count=1; info d.data"},
	}},
	{name: "no data file", fixtures: "create -q -f qcow2 -o data_file=gone.data gone.qcow2 1M;create -q -f qcow2 -b gone.qcow2 -F qcow2 overgone.qcow2", cases: []diffCase{
		{lines: "dd if=a.raw of=gone.data bs=512 count=0; info gone.qcow2; map gone.qcow2; check gone.qcow2; convert -O raw gone.qcow2 x"},
		{lines: "convert -O raw gone.qcow2 gone.raw; compare gone.qcow2 gone.raw; map overgone.qcow2"},
	}},
}
