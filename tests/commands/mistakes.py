"""What a beginner types that cannot work: the line after ``rd-hf``, its exit code, and the words that name the mend.

The lines run in a folder that :func:`tests.commands.test_mistakes.desk` lays out. Rows of :data:`AWKWARD` name files of
the shared data, and skip without it; those of :data:`UNREACHABLE` run on a machine without a network.
"""

from __future__ import annotations

FIT = "fit one with rd-hf fit --config {}"
CARRIED = "or take rd-esm2-mini"

# Commands and flags: exit code 2, from the words alone.
TYPED = [
    ("", "name a command: fit, embed"),
    ("embd --model model", "there is no command 'embd': did you mean rd-hf embed?"),
    ("serach --database d", "did you mean rd-hf search?"),
    ("encode p.fasta", "did you mean rd-hf embed?"),
    ("upload --model model", "did you mean rd-hf push?"),
    ("frobnicate", "there is no command 'frobnicate': name fit, embed"),
    ("dms --model model", "did you mean rd-hf evaluate dms?"),
    ("evaluate", "name a command: dms, residues, homology"),
    ("evaluate dsm --model model", "did you mean rd-hf evaluate dms?"),
    ("help embd", "did you mean rd-hf embed?"),
    ("embed --modle model --input p.fasta --output o", "there is no flag --modle: did you mean --model?"),
    ("embed -model model --input p.fasta --output o", "there is no flag -model: did you mean --model?"),
    ("embed --mod model --input p.fasta --output o", "there is no flag --mod: did you mean --model?"),
    ("embed --Model model --input p.fasta --output o", "there is no flag --Model: did you mean --model?"),
    ("embed --fasta p.fasta --model model --output o", "there is no flag --fasta: did you mean --input?"),
    ("embed --model model --input p.fasta --output o --gpu", "there is no flag --gpu: did you mean --device?"),
    ("embed --model model --input p.fasta --output o --batch-size 8", "did you mean --batch-tokens?"),
    ("embed --model model --input p.fasta --output o --levels L0", "did you mean --level?"),
    ("embed --model=model --inptu=p.fasta --output o", "there is no flag --inptu: did you mean --input?"),
    ("embed --model model --input p.fasta --output o --pooling men", "there is no 'men': did you mean mean?"),
    ("embed --model model --input p.fasta --output o --pooling MEAN", "there is no 'MEAN': did you mean mean?"),
    ("embed --model model --input p.fasta --output o --dtype half", "choose from float32, bfloat16, float16"),
    ("embed --model model --input p.fasta --output o --level", "expected at least one argument"),
    ("embed --model model --input p.fasta --output o --batch-tokens many", "'many' is no whole number of at least 1"),
    ("embed --model model --input p.fasta --output o --batch-tokens 0", "'0' is no whole number of at least 1"),
    ("embed --model model --input p.fasta", "required: -o/--output"),
    ("embed --input p.fasta --output o", "--model must be given, unless --extend"),
    ("embed --model model --output o", "--input must be given, unless --extend"),
    ("embed --model '' --input p.fasta --output o", "--model is given as nothing"),
    ("embed --model model --input p.fasta --output ''", "--output is given as nothing"),
    ("fit --output o", "rd-hf fit --help tells all"),
    ("info", "required: EMBEDDINGS_OR_MODEL"),
    ("info ''", "is a variable of the shell empty?"),
    ("info model unfitted", "unfitted belongs to no flag"),
    ("push --model model", "required: --repo-id"),
    ("release --level 35M", "required: --repo-id"),
]

# Names and files: exit code 1.
NAMED = [
    # A family by name, or its config alone, in each command that takes a model.
    ("embed --model rd-esm2-35M --input p.fasta --output o", FIT.format("rd-esm2-35M (")),
    ("embed --model unfitted --input p.fasta --output o", FIT.format("unfitted (")),
    ("search --queries p.fasta --database embeddings --model rd-esm2-35M --output h.tsv", FIT.format("rd-esm2-35M (")),
    ("convert --model unfitted --input raw.npy --output c", FIT.format("unfitted (")),
    ("convert --model rd-esm2-150M --input raw.npy --output c", "give the Hub id of a fitted one (owner/rd-esm2"),
    ("evaluate dms --model rd-esm2-35M --assays table.csv --output e", CARRIED),
    ("evaluate dms --model unfitted --assays table.csv --output e", FIT.format("unfitted (")),
    ("push --model rd-esm2-35M --repo-id me/m", FIT.format("rd-esm2-35M (")),
    ("push --model unfitted --repo-id me/m", FIT.format("unfitted (")),
    # What is no family.
    ("fit --config rd-esm2-8M --data p.fasta --output f", "two levels or more: the smallest is rd-esm2-35M"),
    ("info rd-esm2-8M", "two levels or more: the smallest is rd-esm2-35M"),
    ("embed --model rd-esmc-300M --input p.fasta --output o", "the smallest is rd-esmc-600M"),
    ("release --level 8M --repo-id me/m --plan", "choose 35M, 150M, 650M, 3B, 15B"),
    ("release --config rd-esm2-8M --repo-id me/m --plan", "no reverse-distilled ESM-2 8M: choose 35M"),
    ("fit --config rd-esm2-35 --data p.fasta --output f", "did you mean rd-esm2-35M?"),
    ("info rd-esm2-mni", "did you mean rd-esm2-mini?"),
    ("embed --model modell --input p.fasta --output o", "did you mean model?"),
    ("info nothing", "no family known by name (rd-esm2-mini, rd-esm2-35M"),
    ("push --model nothing --repo-id me/m", "give rd-esm2-mini"),
    # What is no model.
    ("info p.fasta", "p.fasta is a file, and a model is a folder or a Hub id"),
    ("embed --model p.fasta --input p.fasta --output o", "proteins are given as --input"),
    ("evaluate dms --model p.fasta --assays table.csv --output e", "p.fasta is a file"),
    ("fit --config p.fasta --data p.fasta --output f", "p.fasta is a file"),
    ("embed --model embeddings --input p.fasta --output o", "give the model that made it, model"),
    ("push --model embeddings --repo-id me/m", "embeddings is a folder of embeddings, not a model"),
    ("embed --model empty --input p.fasta --output o", "holds no config.json"),
    ("fit --config empty --data p.fasta --output f", "give a folder that rd-hf fit wrote"),
    ("info empty", "empty holds neither a model (config.json) nor embeddings"),
    ("info https://huggingface.co/lab/model", "give a model of the Hub as owner/name"),
    ("embed --model ./modell --input p.fasta --output o", "./modell: no such folder; check the path"),
    ("embed --model other --input p.fasta --output o", "a model of type 'bert', not 'rd_esm': fit bases first"),
    ("info damaged", "damaged/config.json is no JSON"),
    ("fit --backbones a=nothing b=model --data p.fasta --output f", "a=nothing: no such folder, and no Hub id"),
    ("push --model model --repo-id name", "'name' is no Hub id: write it as owner/name"),
    # What is no file of proteins.
    ("embed --model model --input https://x.org/p.fasta --output o", "fetch it (curl -L -o p.fasta ...)"),
    ("fit --config model --data https://x.org/p.fasta --output f", "https://x.org/p.fasta is an address"),
    ("search --queries https://x.org/p.fasta --database embeddings --output h.tsv", "fetch it (curl"),
    ("embed --model model --input MKTAYIAKQRQISF --output o", "reads as a sequence: put it into a FASTA file"),
    ("fit --config model --data MKTAYIAKQRQISF --output f", "reads as a sequence: put it into a FASTA file"),
    ("fit --config rd-esm2-35M --data nothing.fasta --output f", "nothing.fasta: no such file"),
    ("embed --model model --input embeddings --output o", "is a folder of embeddings, computed already"),
    ("fit --config model --data embeddings --output f", "give the proteins that it was made of"),
    ("embed --model model --input model --output o", "model is the folder of a model: give proteins"),
    ("embed --model model --input rd-esm2-mini --output o", "rd-esm2-mini is a model: give proteins"),
    ("embed --model model --input empty --output o", "give the files in it, for example empty/*.fasta.gz"),
    ("embed --model model --input p.fsata --output o", "did you mean p.fasta?"),
    ("embed --model model --input exmaple --output o", "did you mean example?"),
    ("embed --model model --input '*.faa' --output o", "*.faa: no file here matches"),
    ("embed --model model --input nothing.fasta --output o", "check the path (relative to"),
    ("embed --model model --input none.fasta --output o", "no line starts with '>'"),
    ("embed --model model --input table.csv --output o", "name one with --sequence-column"),
    ("embed --model model --input cut.fasta.gz --output o", "fetch the file again"),
    ("embed --model model --input p.zip --output o", "p.zip is a zip archive (or an Excel file): unzip it"),
    ("embed --model model --input digits.fasta --output o", "'1' is not a residue"),
    ("embed --model model --input - - --output o", "can be read once only"),
    # What the model, the folder or the machine does not have.
    ("embed --model model --input p.fasta --output o --level L9", "its levels are L0, L1, L2"),
    ("embed --model model --input p.fasta --output o --width 999", "ask for at most so many"),
    ("embed --model model --input p.fasta --output o --one-pass", "fit it with rd-hf fit --one-pass"),
    ("embed --model model --input p.fasta --output o --device gpu", "give cpu, cuda, cuda:1"),
    ("embed --model model --input p.fasta --output o --pooling positions", "give --positions"),
    ("embed --model model --input p.fasta --output model", "--output model would replace --model model"),
    ("embed --model model --input p.fasta --output p.fasta", "choose another --output"),
    ("embed --model model --input p.fasta --output embeddings --level L0", "choose another --output"),
    ("embed --extend p.fasta --level L2 --output o", "make one with rd-hf embed"),
    ("search --queries p.fasta --database model --output h.tsv", "make one with rd-hf embed"),
    ("search --queries p.fasta --database embeddings --output h.xlsx", "must end in one of .parquet, .tsv, .csv"),
    ("map model --output m.html", "make one with rd-hf embed"),
    ("export p.fasta --output e.h5", "make one with rd-hf embed"),
    ("evaluate dms --model model --assays empty --output e", "give ProteinGym assays"),
    ("evaluate dms --assays table.csv --output e", "give --model or --backbones"),
    ("release --level 35M --repo-id me/m --memory lots --plan", "write it as 500MB, 24GB or 24GiB"),
    ("import-published --weights nothing --level 35M --output i", "nothing: no such folder"),
]

# {0} stands for the folder of the shared data.
AWKWARD = [
    ("embed --model model --input {0}/failing/protein-column-names.tsv --output o", "with --sequence-column"),
    ("embed --model model --input {0}/failing/ragged.parquet --output o", "with --sequence-column"),
    ("embed --model model --input {0}/failing/few.tsv --output o", "with --sequence-column"),
    ("fit --config model --data {0}/failing/protein-column-names.tsv --output f", "with --sequence-column"),
    ("convert --model model --input {0}/failing/bytesattr_0.h5 --output c", "those of L0 are missing"),
    ("evaluate dms --model model --assays {0}/failing/orders_only.csv --output e", "keep one row a variant"),
    ("embed --model model --input {0}/fasta_awkward --output o", "give the files in it"),
    ("embed --model model --input {0}/fasta_awkward/INDEX.tsv --output o", "with --sequence-column"),
    (
        "embed --strict --model model --input {0}/fasta_awkward/biopython_aster_pearson_semicolon.pro --output o",
        "stands before any '>'; remove it",
    ),
]

# What is wanted of the Hub, and the words for it.
UNREACHABLE = [
    ("info lab/model", "lab/model is neither here nor complete in the cache"),
    ("embed --model lab/model --input p.fasta --output o", CARRIED),
    ("embed --model model --input lab/proteins --output o", "lab/proteins is neither here"),
    ("search --queries p.fasta --database embeddings --model lab/model --output h.tsv", "lab/model is neither here"),
    ("convert --model lab/model --input p.fasta --output c", "lab/model is neither here"),
    ("fit --config lab/model --data p.fasta --output f", "lab/model is neither here"),
    ("fit --config rd-esm2-35M --data p.fasta --output f", "facebook/esm2_t6_8M_UR50D is neither here"),
    ("fit --backbones a=lab/x b=lab/y --data p.fasta --output f", "lab/x is neither here"),
    ("evaluate dms --model lab/model --assays table.csv --output e", "lab/model is neither here"),
    ("push --model model --repo-id me/m", "name a way out (HTTPS_PROXY) or a mirror (HF_ENDPOINT)"),
    ("release --config lab/model --repo-id me/m --plan", "lab/model is neither here"),
]
