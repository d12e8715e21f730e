// Package advice says what the choices of a machine's disks mean, in general
// (`lamina explain`) and for one disk on this host (`lamina check`). Its facts
// are tables, each with the document that it is taken from.
package advice

// Topic is what [Explain] knows about.
type Topic string

const (
	TopicCache         Topic = "cache"
	TopicBus           Topic = "bus"
	TopicPreallocation Topic = "preallocation"
	TopicFormat        Topic = "format"
)

// Topics returns all topics, in the order in which they are listed.
func Topics() []Topic { return []Topic{TopicCache, TopicBus, TopicPreallocation, TopicFormat} }

// Table is what there is to know of one topic: a row for each choice.
type Table struct {
	Topic   Topic    `json:"topic"`
	Summary string   `json:"summary"` // a sentence or two, above the table
	Columns []string `json:"columns"`
	Rows    []Row    `json:"rows"`
	Notes   []string `json:"notes"`   // below the table
	Sources []string `json:"sources"` // the documents of QEMU and libvirt that say so
}

// Row is one choice.
type Row struct {
	Name    string   `json:"name"`    // "none", "virtio", ...
	Cells   []string `json:"cells"`   // one for each column but the first, which is the name
	Default bool     `json:"default"` // what is used where nothing is said
	// Text says in full what the row means: `lamina explain cache none`.
	Text string `json:"text"`
}

// Level is how much a finding matters.
type Level string

const (
	OK      Level = "ok"
	Note    Level = "note"    // worth knowing
	Warning Level = "warning" // works, and may cost data or time
	Problem Level = "problem" // cannot work here
)

// Finding is one thing to say of a machine on this host.
type Finding struct {
	Level   Level  `json:"level"`
	Subject string `json:"subject"` // "disk vda: cache", "memory", ...
	Text    string `json:"text"`
	Remedy  string `json:"remedy,omitempty"` // what to do, if anything
}
