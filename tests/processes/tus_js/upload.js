// Uploads a file with tus-js-client, as the test that starts this says (JSON in the first argument).
//   endpoint, token, path, file      what goes where
//   chunkSize, parallelUploads       as the client's options
//   stopAt                           give up after so many bytes and print the upload's URL
//   uploadUrl                        go on with this one
//   protocol                         ietf-draft-05 instead of tus
const fs = require('node:fs')
const tus = require('tus-js-client')

const said = JSON.parse(process.argv[2])
const upload = new tus.Upload(fs.createReadStream(said.file), {
  endpoint: said.endpoint,
  uploadUrl: said.uploadUrl ?? null,
  protocol: said.protocol ?? 'tus-v1',
  chunkSize: said.chunkSize ?? Infinity,
  parallelUploads: said.parallelUploads ?? 1,
  retryDelays: [0, 200, 500, 1000, 2000, 4000, 8000],
  headers: { Authorization: `Bearer ${said.token}` },
  metadata: { path: said.path },
  metadataForPartialUploads: {},
  onError: (error) => {
    console.error(error.message)
    process.exit(1)
  },
  onChunkComplete: (_, accepted) => {
    if (said.stopAt && accepted >= said.stopAt) {
      console.log(upload.url)
      process.exit(0)
    }
  },
  onSuccess: () => {
    console.log(upload.url)
    process.exit(0)
  },
})
upload.start()
